"""What a person sees while steps go by: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 15.0  # without a terminal


class StepCallback(Protocol):
    """Takes a finished step and the numbers to show beside it."""

    def __call__(self, step: int, shown: Mapping[str, float]) -> None: ...


@contextmanager
def step_progress(
    title: str, *, start: int, total: int, console: Console | None = None
) -> Iterator[StepCallback]:
    """Show steps `start + 1 ... total` as they are reported.

    Args:
        title: What is being done.
        start: Steps done before.
        total: The last step.
        console: Where to; the one of the whole process by default.
    """
    console = console or get_console()
    if not console.is_terminal:
        yield _lines(title, start, total, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=start, shown="")

        def report(step: int, shown: Mapping[str, float]) -> None:
            bar.update(task, completed=step, shown=format_numbers(shown))

        yield report


def _lines(title: str, start: int, total: int, console: Console) -> StepCallback:
    began = printed = time.monotonic()

    def report(step: int, shown: Mapping[str, float]) -> None:
        nonlocal printed
        now = time.monotonic()
        if step not in (start + 1, total) and now - printed < _LINE_EVERY_S:
            return
        printed = now
        left = (now - began) / (step - start) * (total - step)
        numbers = format_numbers(shown)
        console.print(f"{title} {step}/{total} {numbers} left {left:.0f} s", highlight=False)

    return report


def format_numbers(shown: Mapping[str, float]) -> str:
    """Numbers as `name value` pairs, short."""
    return "  ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
