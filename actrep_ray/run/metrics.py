"""What a run writes down as it goes: numbers, texts and histograms of its steps.

    RUN_DIR/metrics.jsonl   one JSON object a step: `step`, `time_s`, then `phase/name` keys
    RUN_DIR/texts.jsonl     one JSON object a text: `step`, `key`, `text`
    RUN_DIR/tb/             the same for TensorBoard
    trackers                the numbers, by `trackers.py`
    console                 one line a step, readable with and without a terminal

A resumed run passes the step that it goes on from: what an earlier attempt wrote after that step
is dropped, from the files, from TensorBoard and from trackers alike, so that no step counts twice.

TensorBoard shows its curves by name. So that it opens on those that say something, the curve of a
mishap that never happened is left out; once it does, it begins with the step before.
"""

import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.text import Text

from actrep_ray.run.console import as_text
from actrep_ray.run.console import console as own_console
from actrep_ray.run.trackers import TENSORBOARD, TrackerError, open_trackers
from data_prep.files import AppendedLines, DataError, read_jsonl, write_lines

_log = logging.getLogger(__name__)

# What the console shows of a step, where it is there: (key, label, format).
_COLUMNS = (
    ("reward/mean", "reward", ".3f"),
    ("train/obz", "exact", ".2f"),
    ("train/obo", "obo", ".2f"),
    ("train/obz_list", "by list", ".2f"),
    ("train/consistent", "consistent", ".2f"),
    ("sft/loss", "loss", ".4f"),
    ("sft/validation_loss", "val", ".4f"),
    ("rollout/response_tokens", "len", ".0f"),
    ("learner/clip_fraction", "clip", ".3f"),
    ("learner/approx_kl", "kl", ".4f"),
    ("learner/grad_norm", "grad", ".2f"),
    ("learner/log_prob_gap_mean", "gap", ".0e"),
    ("dropped/groups", "dropped", ".0f"),
    ("eval/mae", "eval mae", ".3f"),
    ("eval/obo", "eval obo", ".3f"),
    ("eval/consistent", "eval consistent", ".3f"),
)
_SECONDS_PREFIX, _SECONDS_SUFFIX = "time/", "_s"
_STEP_SECONDS = "time/step_s"
_OF_A_ROW = ("step", "time_s", "not_finite")
_NO_CURVE = "checkpoint/step"  # a stair beside the steps themselves
_MISHAPS = ("alarms/", "checkpoint/failed", "data/quarantined", "faults/")
_SMOOTHING = 0.2  # weight of the newest step in the seconds that the time left is reckoned with


class MetricLogger:
    """Writes the metrics of one run; use it as a context manager.

    Args:
        run_dir: Folder of the run; made if missing.
        purge_after_step: Rows of later steps are dropped; None keeps what is there.
        num_steps: The last step of the run. Given, every step is a line on the console.
        title: Word before the step on that line.
        console: Where the lines go; standard output by default.
        trackers: Names, as of `run.trackers`; those but TensorBoard want the record of a run.

    Raises:
        TrackerError: if a tracker cannot be opened.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        purge_after_step: int | None = None,
        num_steps: int | None = None,
        title: str = "step",
        console: Console | None = None,
        trackers: Sequence[str] = (TENSORBOARD,),
    ) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        metrics, texts = (self.run_dir / name for name in ("metrics.jsonl", "texts.jsonl"))
        for path in (metrics, texts):
            _purge(path, purge_after_step)
        rows = read_metrics(metrics) if metrics.exists() else []
        so_far = [(row["step"], _finite(row)) for row in rows]
        self._metrics, self._texts = AppendedLines(metrics), AppendedLines(texts)
        self._board = self._open_board(purge_after_step) if TENSORBOARD in trackers else None
        self._trackers = open_trackers(trackers, self.run_dir, so_far)
        self._zero_at: dict[str, int] = {}  # last step of a mishap that has not happened
        self._is_curve: set[str] = set()
        for step, values in so_far:
            for key, value in values.items():
                deque(self._points(step, key, value), maxlen=0)
        self._is_refused = False
        self._seconds: dict[str, float] = {}
        self._began = self._last = time.monotonic()
        self._lines = None if num_steps is None else StepLines(title, num_steps, console)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_board(self, purge_after_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if purge_after_step is None else purge_after_step + 1
        return SummaryWriter(str(self.run_dir / "tb"), purge_step=purge_step)

    def log(
        self, step: int, metrics: Mapping[str, float], facts: Mapping[str, float] | None = None
    ) -> None:
        """Write the numbers of a step, and the seconds of the phases timed since the last one.

        `facts` are left out of TensorBoard: a curve of one point is none.

        `time/step_s` is the time since the last call unless it is given. A number that is not
        finite is null in the file and left out of TensorBoard and trackers; its key is named under
        `not_finite`.

        Raises:
            ValueError: if a key or a value is none; naming both.
        """
        now = time.monotonic()
        values = {f"{_SECONDS_PREFIX}{k}{_SECONDS_SUFFIX}": v for k, v in self._seconds.items()}
        values[_STEP_SECONDS] = now - self._last
        known = {key: _number(key, value) for key, value in (facts or {}).items()}
        values |= {key: _number(key, value) for key, value in metrics.items()} | known
        self._seconds, self._last = {}, now
        row: dict[str, Any] = {"step": int(step), "time_s": round(now - self._began, 3)}
        row |= {key: value if math.isfinite(value) else None for key, value in values.items()}
        if lost := [key for key, value in values.items() if not math.isfinite(value)]:
            row["not_finite"] = lost
        with self._going_on():
            self._metrics.add(_line_of(row))
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        if self._board is not None:
            with self._going_on():
                for key, value in finite.items():
                    for at, point in self._points(step, key, value) if key not in known else ():
                        self._board.add_scalar(key, point, at)
                self._board.flush()
        for tracker in self._trackers:
            with self._going_on():
                tracker.log(step, finite)
        if self._lines is not None:
            self._lines.show(step, values)

    def _points(self, step: int, key: str, value: float) -> Iterator[tuple[int, float]]:
        """What TensorBoard is given now: (step, value), with the 0 before if a curve begins."""
        if key == _NO_CURVE:
            return
        if key.startswith(_MISHAPS) and key not in self._is_curve:
            if value == 0.0:
                self._zero_at[key] = step
                return
            self._is_curve.add(key)
            if (before := self._zero_at.pop(key, None)) is not None:
                yield before, 0.0
        yield step, value

    def text(self, step: int, key: str, text: str) -> None:
        """Write a text of a step, for example one answer."""
        with self._going_on():
            self._texts.add(_line_of({"step": int(step), "key": key, "text": text}))
        if self._board is not None:
            # TensorBoard renders Markdown; indented by four it is shown as it is.
            shown = "\n".join(f"    {line}" for line in text.splitlines())
            with self._going_on():
                self._board.add_text(key, shown, step)

    def histogram(self, step: int, key: str, values: Sequence[float] | np.ndarray) -> None:
        """Write a distribution of a step, for example the counts of the clips that were issued."""
        array = np.asarray(values, np.float64)
        if array.size == 0 or not np.isfinite(array).all():
            raise ValueError(f"{key}: expected finite numbers, got {array.tolist()[:8]}")
        if self._board is not None:
            with self._going_on():
                self._board.add_histogram(key, array, step)

    @contextmanager
    def timer(self, phase: str) -> Iterator[None]:
        """Time a phase of the step; `log` writes it as `time/<phase>_s`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - began

    def close(self) -> None:
        """Flush and close every file."""
        board = [] if self._board is None else [self._board]
        for file in (self._metrics, self._texts, *board, *self._trackers):
            with self._going_on():
                file.close()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A disk that takes no metrics ends no run; it is told once."""
        try:
            yield
        except (OSError, DataError, TrackerError) as error:
            if not self._is_refused:
                _log.error(
                    "metrics cannot be written: %s; the run goes on, rows may be lost", error
                )
            self._is_refused = True


class StepLines:
    """One line a step: what was learned, the seconds of its phases, and the time left.

    Args:
        title: Word before the step.
        num_steps: The last step.
        console: Where to; standard output by default.
    """

    def __init__(self, title: str, num_steps: int, console: Console | None = None) -> None:
        self.title = title
        self.num_steps = num_steps
        self.console = console or own_console()
        self._step_s: float | None = None

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the line of a step; step 0, before the first, is no measure of the time left."""
        if step == 0 and not any(key in metrics for key, _, _ in _COLUMNS):
            return
        seconds = metrics.get(_STEP_SECONDS, 0.0)
        known = seconds if self._step_s is None else self._step_s
        smooth = (1 - _SMOOTHING) * known + _SMOOTHING * seconds
        self._step_s = smooth if step else None
        left = (self.num_steps - step) * smooth
        self.console.print(self._line(step, metrics, left), soft_wrap=True)

    def _line(self, step: int, metrics: Mapping[str, float], left_s: float) -> Text:
        width = len(str(self.num_steps))
        line = as_text(f"{self.title} {step:>{width}}/{self.num_steps}", "bold cyan")
        for key, label, form in _COLUMNS:
            if key in metrics:
                line.append(f"  {label} ", style="not bold dim white")
                line.append(format(metrics[key], form), style="not bold default")
        phases = " ".join(f"{name} {value:.1f}" for name, value in _phases(metrics))
        took = f"  {metrics.get(_STEP_SECONDS, 0.0):.1f} s" + (f" ({phases})" if phases else "")
        line.append(f"{took}  left {format_duration(left_s)}", style="not bold dim white")
        return line


def write_curves(folder: str | Path, points: Mapping[int, Mapping[str, float]]) -> None:
    """Write curves for TensorBoard alone, in the place of those that the folder holds.

    Args:
        folder: Of these curves and nothing else.
        points: Numbers by name, of each step.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as board:
        for step, values in points.items():
            for name, value in values.items():
                if math.isfinite(value):
                    board.add_scalar(name, value, step)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, one a step, in the order of the steps.

    Rows of one step are joined; the later one's value stands where both have a key.

    A last line that the end of a killed run cut off is left out, with a warning.

    Raises:
        DataError: naming the file and the line that is not a row.
    """
    rows: dict[int, dict[str, Any]] = {}
    for step, row in _read_rows(Path(path)):
        rows.setdefault(step, {}).update(row)
    return [rows[step] for step in sorted(rows)]


def format_duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 20 s" or "2 h 05 min".

    >>> format_duration(200.4)
    '3 min 20 s'
    """
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _phases(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return [
        (key.removeprefix(_SECONDS_PREFIX).removesuffix(_SECONDS_SUFFIX), value)
        for key, value in metrics.items()
        if key.startswith(_SECONDS_PREFIX) and key != _STEP_SECONDS
    ]


def _number(key: str, value: Any) -> float:
    if not isinstance(key, str) or not key or key in _OF_A_ROW:
        raise ValueError(f"metric key {key!r}, expected a name like 'phase/name'")
    if isinstance(value, str) or np.ndim(value) != 0:
        raise ValueError(f"metric {key}={value!r}, expected a number")
    return float(value)


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of the file."""
    return {
        key: value
        for key, value in row.items()
        if key not in _OF_A_ROW and isinstance(value, int | float)
    }


def _line_of(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their steps."""
    for row in read_jsonl(path, "the metrics of a run", on_cut=_log.warning):
        step = row.values.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise DataError(f"{row.where}: step={step!r}, expected an integer")
        yield step, row.values


def _purge(path: Path, after_step: int | None) -> None:
    """Drop the rows after a step, and a line that a kill cut off; atomically."""
    if not path.exists():
        return
    rows = [row for step, row in _read_rows(path) if after_step is None or step <= after_step]
    write_lines(path, map(_line_of, rows))
