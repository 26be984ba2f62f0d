"""Whether what an answer reasons is what is seen: for images whose description is known.

Of an answer, by the features of its description (`explanations`), it is told

    seen     the share of the features that distinguish the true class which the reasoning names
    added    the share of its features that the image does not have
    follows  whether the class that is answered is the one whose features, and no others, it names
"""

from collections.abc import Sequence

import numpy as np

from actrep_ray.evaluation.explanations import features_of, reasons_of
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.tasks.base import Task
from data_prep.images import LabelledImage


def faithfulness(
    answers: Sequence[Prediction], images: Sequence[LabelledImage], task: Task
) -> dict[str, float] | None:
    """Means of `seen`, `added` and `follows` over all images; None where one has no description."""
    if not images or any(image.description is None for image in images):
        return None
    told = {task.truth(task.reference(i)): features_of(i.description or "") for i in images}
    by_id = {answer.clip_id: answer for answer in answers}
    rows = []
    for image in images:
        answer = by_id[image.id]
        named, true = reasons_of(answer.text), features_of(image.description or "")
        seen = len(named & true) / len(true) if true else 0.0
        added = len(named - true) / len(named) if named else 0.0
        follows = answer.reading is not None and bool(named) and told.get(answer.reading) == named
        rows.append((seen, added, float(follows)))
    means = np.mean(rows, axis=0).tolist()
    return dict(zip(("seen", "added", "follows"), means, strict=True))
