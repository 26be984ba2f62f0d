"""Nothing that took work is written over unasked."""

from pathlib import Path

from data_prep.files import DataError


def refuse_existing(*files: Path, overwrite: bool = False) -> None:
    """Refuse to write over files that are there; a folder is for the writer to refuse.

    Args:
        files: What is to be written.
        overwrite: Whether to write over them was asked for.

    Raises:
        DataError: naming the first that is there.
    """
    for path in files if not overwrite else ():
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise DataError(f"{path}: is there already; give --overwrite, or another name")


def refuse_filled(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse to write over a folder that holds something, or a file in its place.

    Raises:
        DataError: naming it.
    """
    refuse_existing(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; give --overwrite, or another folder")
