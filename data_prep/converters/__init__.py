"""Converters of public repetition sets: each reads a set as it is distributed.

    from data_prep.converters import convert, repcount

    source = repcount([Path("annotation/train.csv")])
    summary = convert(source, videos="video", out="data/repcount")

`convert` writes the canonical JSONL of `data_prep.schema`; a set's own file knows its columns.
"""

from data_prep.converters.actrep import actrep
from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.conversion import MissingVideosError, Summary, convert
from data_prep.converters.countix import countix
from data_prep.converters.ovr import ovr
from data_prep.converters.quva import quva
from data_prep.converters.remarks import FLAGS, REASONS
from data_prep.converters.repcount import repcount
from data_prep.converters.rows import BadRowError, Record
from data_prep.converters.table import TableFormat, table
from data_prep.converters.ucfrep import ucfrep

__all__ = [
    "FLAGS",
    "REASONS",
    "Annotation",
    "BadRowError",
    "MissingVideosError",
    "Record",
    "Source",
    "Summary",
    "TableFormat",
    "actrep",
    "convert",
    "countix",
    "ovr",
    "quva",
    "repcount",
    "table",
    "ucfrep",
]
