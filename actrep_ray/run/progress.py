"""What a person sees while steps go by: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from actrep_ray.run.console import as_text, console, progress_bar

_LINE_EVERY_S = 15.0  # without a terminal


class StepCallback(Protocol):
    """Takes a finished step and the numbers to show beside it."""

    def __call__(self, step: int, shown: Mapping[str, float]) -> None: ...


@contextmanager
def step_progress(
    title: str, *, start: int, total: int, on: Console | None = None
) -> Iterator[StepCallback]:
    """Show steps `start + 1 ... total` as they are reported.

    Args:
        title: What is being done.
        start: Steps done before.
        total: The last step.
        on: Where to; the one of the whole process by default.
    """
    on = on or console()
    if not on.is_terminal:
        yield _lines(title, start, total, on)
        return
    with progress_bar(on=on, shows="shown", has_elapsed=True, is_transient=False) as bar:
        task = bar.add_task(title, total=total, completed=start, shown="")

        def report(step: int, shown: Mapping[str, float]) -> None:
            bar.update(task, completed=step, shown=format_numbers(shown))

        yield report


def _lines(title: str, start: int, total: int, on: Console) -> StepCallback:
    began = printed = time.monotonic()

    def report(step: int, shown: Mapping[str, float]) -> None:
        nonlocal printed
        now = time.monotonic()
        if step not in (start + 1, total) and now - printed < _LINE_EVERY_S:
            return
        printed = now
        left = (now - began) / (step - start) * (total - step)
        numbers = format_numbers(shown)
        on.print(as_text(f"{title} {step}/{total} {numbers} left {left:.0f} s"))

    return report


def format_numbers(shown: Mapping[str, float]) -> str:
    """Numbers as `name value` pairs, short."""
    return "  ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
