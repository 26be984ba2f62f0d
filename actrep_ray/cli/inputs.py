"""What a command is given, looked at before anything heavy is imported.

torch, transformers and vLLM take half a minute to load on a slow machine, and whoever mistyped a
name should not wait for them. What is told here would be told later as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actrep_ray.config import Recipe


def check_inputs(recipe: "Recipe", splits: Sequence[str], *, may_download: bool = False) -> Path:
    """Refuse clips or a model that cannot be used; the folder of the model.

    Args:
        recipe: Settings.
        splits: Of which there must be clips.
        may_download: See `check_model`.

    Raises:
        ConfigError: if a path is not set, or leads to no model that is known here.
        DataError: for a bad row, or a split without clips.
    """
    from actrep_ray.config import ConfigError
    from actrep_ray.tasks.loading import clips_of_split

    if not recipe.data.path:
        raise ConfigError("data.path is not set: give the JSONL file of clips")
    for split in splits:
        clips_of_split(recipe, split)
    return check_model(recipe.model.path, may_download=may_download)


def check_model(path: str | Path, *, may_download: bool = False) -> Path:
    """The folder of a model of a family that is known here, its weights of the same one.

    Args:
        path: A model folder, a run folder, or OWNER/MODEL.
        may_download: Whether a published model is fetched where it is not in the hub cache.

    Raises:
        ConfigError: if there is none, naming what is wrong with it.
    """
    from actrep_ray.models.families import read_family
    from actrep_ray.run.model_folder import download_model, resolve_model

    if may_download:
        download_model(str(path))
    folder = resolve_model(path)
    read_family(folder)
    return folder
