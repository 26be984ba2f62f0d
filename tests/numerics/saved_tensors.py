"""Tensors that ranks have saved or sent, all of them together."""

from pathlib import Path

import torch

from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.tensor_files import TensorFiles


def load_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """All tensors of a stem in a folder, whichever ranks wrote them."""
    files = TensorFiles(folder, stem)
    return {name: files.get(name) for name in files.names}


def sent_by_all(worker: LearnerWorker) -> dict[str, torch.Tensor]:
    """The weights that all ranks export; every rank must take part, and is given them."""
    own = {name: weight.clone() for name, weight in worker.iter_weights()}
    of_ranks = worker.ranks.gather(own)
    found = {name: weight for part in of_ranks for name, weight in part.items()}
    assert len(found) == sum(len(part) for part in of_ranks), "sent twice"
    return found
