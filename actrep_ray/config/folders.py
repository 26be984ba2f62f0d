"""Where the paths of a recipe start from, and which of its names are no paths."""

import re
from pathlib import Path

from actrep_ray.config.recipe import Recipe

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w-][\w.-]*")
_OURS = ("data", "models", "runs")  # folders of recipes


def is_hub_name(path: str, folder: str | Path = "") -> bool:
    """Whether a name is OWNER/MODEL, as on the hub, and no path into a folder that is here.

    Args:
        path: As it was given.
        folder: What it starts from; the current one by default.
    """
    owner = path.partition("/")[0]
    is_name = bool(_HUB_NAME.fullmatch(path)) and owner not in _OURS
    return is_name and not (Path(folder) / owner).exists()


def under_root(recipe: Recipe, root: str | Path) -> Recipe:
    """The same settings with every relative path taken from a folder; names are left as they are.

    For a submitted job, whose own folder is a copy of the code alone, `root` lies on storage that
    all nodes share. A published model (`OWNER/MODEL`), a task's file, which is code, and
    `video.cache_dir`, a folder of each node, are not taken from there.
    """
    base = Path(root).absolute()

    def at_root(path: str) -> str:
        return str(base / path) if path else path

    data, learner, model = recipe.data, recipe.learner, recipe.model
    is_name = is_hub_name(model.path, base)
    sections = {
        "data": data.model_copy(
            update={
                "path": at_root(data.path),
                "answers": at_root(data.answers),
                "allow_outside": tuple(map(at_root, data.allow_outside)),
            }
        ),
        "model": model if is_name else model.model_copy(update={"path": at_root(model.path)}),
        "learner": learner.model_copy(
            update={"deepspeed_config": at_root(learner.deepspeed_config or "") or None}
        ),
    }
    return recipe.model_copy(update={"runs_dir": at_root(recipe.runs_dir), **sections})
