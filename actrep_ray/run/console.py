"""The console: text is text, whatever is in it; a style is asked for by its name.

Owns how anything is shown by rich. Names of actions, files and metrics come from data files, models
and the command line: `[/red]` in one is no markup, `:smile:` no picture, and what moves a cursor or
breaks the encoding is written out. `tests/unit/test_console.py` keeps other consoles out.
"""

from functools import cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from data_prep.printable import printable


@cache
def console() -> Console:
    """Standard output of this process."""
    return make_console()


@cache
def error_console() -> Console:
    """Standard error of this process, where bars of progress are shown."""
    return make_console(is_error=True)


def make_console(*, is_error: bool = False, width: int | None = None) -> Console:
    """A console on which text is shown as it is.

    Args:
        is_error: Whether it is standard error.
        width: Characters of a line; by default the terminal's.
    """
    return Console(stderr=is_error, width=width, markup=False, emoji=False, highlight=False)


def as_text(text: str, style: str = "") -> Text:
    """A text for a console or a cell of a table: nothing in it but its line breaks acts."""
    return Text(printable(text, keeps_lines=True), style)


def progress_bar(
    *, on: Console, shows: str | None = None, has_elapsed: bool = False, is_transient: bool = True
) -> Progress:
    """A bar of things done, shown on a terminal only.

    Args:
        on: Where.
        shows: Field of its tasks with text that is shown behind the bar.
        has_elapsed: Whether the seconds gone by are shown, beside those left.
        is_transient: Whether it is taken away at its end.
    """
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(f"{{task.fields[{shows}]}}", markup=False)] if shows else []),
        *([TimeElapsedColumn(), TextColumn("left", markup=False)] if has_elapsed else []),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=on, transient=is_transient, disable=not on.is_terminal)
