"""How far confidence can be believed, as a table for the page and one for files."""

from collections.abc import Mapping

import pandas as pd

from actrep_ray.evaluation.confidence import Reliability
from actrep_ray.evaluation.frames import clean
from actrep_ray.evaluation.tables import TableData


def confidence_frame(
    found: Mapping[str, Reliability], checked: Mapping[str, Reliability]
) -> pd.DataFrame:
    """One row for each predictor that was sampled and bin of confidence with clips.

    Args:
        found: By predictor.
        checked: The same beside the detector, where that was asked.
    """
    rows = [(name, "none", one) for name, one in found.items()]
    rows += [(name, "detector", one) for name, one in checked.items()]
    return pd.DataFrame(
        [
            {
                "predictor": clean(name),
                "beside": second,
                "samples": one.num_answers,
                "from": bin_.low,
                "to": bin_.high,
                "clips": bin_.num_clips,
                "confidence": bin_.confidence,
                "right": bin_.right.value,
                "right_at_least": bin_.right.low,
                "right_at_most": bin_.right.high,
            }
            for name, second, one in rows
            for bin_ in one.bins
        ]
    )


def confidence_table(name: str, found: Reliability, checked: Reliability | None) -> TableData:
    """One row for each bin of confidence with clips, and the error over all of them.

    Args:
        name: Of the predictor.
        found: Of its answers alone.
        checked: Beside the detector, of which the error alone is told.
    """
    rows = tuple(
        (
            f"{bin_.low:.1f} to {bin_.high:.1f}",
            str(bin_.num_clips),
            f"{bin_.confidence:.3f}",
            f"{bin_.right.value:.3f}\n{bin_.right.low:.2f}–{bin_.right.high:.2f}",
        )
        for bin_ in found.bins
    )
    num_clips = sum(bin_.num_clips for bin_ in found.bins)
    note = (
        f"Expected calibration error {found.error:.3f}: mean distance of confidence and share "
        f"right, over {num_clips} clips. Confidence is that of actrep count --samples "
        f"{found.num_answers}, without the detector."
    )
    if found.crossed is not None:
        note += f" Calibrated on the other half of the clips: {found.crossed:.3f}."
    if checked is not None:
        note += f" Beside the detector: {checked.error:.3f}."
    columns = ("confidence", "clips", "mean", "right")
    title = f"{name}: confidence of {found.num_answers} answers"
    return TableData(title, columns, rows, note, is_main=True)
