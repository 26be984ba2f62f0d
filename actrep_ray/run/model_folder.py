"""Which folder is meant where a recipe or a command names a model."""

import logging
from pathlib import Path

from actrep_ray.config import ConfigError, Recipe, is_hub_name, read_saved
from actrep_ray.models.families import how_to_get
from actrep_ray.models.weights_files import check_weights
from actrep_ray.run import manifest
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.manifest import DamageError

# No other formats of the same weights.
_FILES_OF_MODEL = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
_log = logging.getLogger(__name__)


def resolve_model(path: str | Path) -> Path:
    """The model folder meant by a path: itself, or the newest whole checkpoint of a run folder.

    Raises:
        ConfigError: if there is no model, or its files are not as they were written.
    """
    if not str(path):
        raise ConfigError("model.path is not set: give the folder of a Hugging Face checkpoint")
    given, path = str(path), Path(path).absolute()
    if not path.exists():
        path = _folder_of_name(given)
    if path.is_dir() and not (path / "config.json").is_file():
        store = CheckpointStore(path, keep=1)
        found, skipped = store.look("model")
        for one in skipped:
            _log.warning("%s", one)
        if found is not None:
            return found.folder
        reason = skipped[0].reason if skipped else "no config.json in it"
        where = skipped[0].path if skipped else path
        raise ConfigError(f"{where}: not a model checkpoint ({reason})")
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: not a model checkpoint (no config.json in it)")
    if (path / manifest.NAME).is_file():
        try:
            manifest.check_files(path, manifest.read_manifest(path), "model")
        except DamageError as error:
            raise ConfigError(f"{path}: {error}") from error
    check_weights(path)
    return path


def _folder_of_name(given: str) -> Path:
    """The folder in the local hub cache of a published model, as `Qwen/Qwen3-VL-4B-Instruct`.

    Raises:
        ConfigError: saying how to get what is not there.
    """
    if (found := _cached(given)) is not None:
        return found
    what = "no such checkpoint, expected a model folder or a run folder"
    raise ConfigError(f"{Path(given).absolute()}: {what}{how_to_get(given)}")


def _cached(given: str) -> Path | None:
    """The folder of a published model in the local hub cache, if it is there."""
    if not is_hub_name(given):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(given, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def download_model(name: str) -> None:
    """Fetch a published model, as `Qwen/Qwen3-VL-4B-Instruct`, into the local hub cache.

    Does nothing for a name that is no OWNER/MODEL, or is a folder.

    Raises:
        ConfigError: if it cannot be fetched, with what the hub or the network said.
    """
    if not is_hub_name(name):
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(name, allow_patterns=list(_FILES_OF_MODEL))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        cause = error.__cause__ or error
        told = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ConfigError(f"--download: {name} cannot be fetched: {told}") from error


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """All whole checkpoints of a run folder, by step.

    Raises:
        ConfigError: if there is none.
    """
    found = [one.folder for one in CheckpointStore(run_dir.absolute(), keep=1).whole()]
    if not found:
        raise ConfigError(f"{run_dir}: no whole checkpoint in it, expected the folder of a run")
    return found


def model_folder(path: str | Path) -> Path:
    """The newest checkpoint of a run folder, by lengths alone; that of a published model that is
    in the local hub cache; any other path as it is.
    """
    path = _cached(str(path)) or Path(path)
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    newest = CheckpointStore(path, keep=1).newest("lengths")
    return path if newest is None else newest.folder


def recipe_of(folder: Path) -> Recipe | None:
    """The settings that a checkpoint of ours was trained with; None for other model folders.

    Raises:
        ConfigError: if they are not settings of this version.
    """
    path = folder / "recipe.json"
    return read_saved(path) if path.is_file() else None
