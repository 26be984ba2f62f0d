"""CSV files whose names say which split their rows belong to."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from data_prep.converters.csv_rows import Columns, read_table
from data_prep.converters.rows import Record, size_of
from data_prep.converters.values import split_of_path


def read_tables(
    paths: Sequence[Path], columns: Columns, *, split: str | None
) -> tuple[Iterator[Record], int]:
    """Rows of CSV files whose names say the split, one file after the other, and their bytes.

    Args:
        paths: The files.
        columns: What is looked for in each.
        split: Of all rows; None goes by the files' names.

    Raises:
        DataError: if one is not there, is empty, or does not say its split.
    """
    starts = [0, *accumulate(size_of([path]) for path in paths)]
    splits = [split_of_path(path, split) for path in paths]

    def records() -> Iterator[Record]:
        for path, of_file, start in zip(paths, splits, starts, strict=False):
            yield from read_table(path, columns, split=of_file, before=start)

    return records(), starts[-1]
