"""Nothing that took work is written over unasked."""

from pathlib import Path

from data_prep.files import DataError


def refuse_existing(*paths: Path, overwrite: bool = False) -> None:
    """Refuse to write over what is there.

    Args:
        paths: Files and folders to be written; a folder that holds nothing but a lock is free.
        overwrite: Whether that was asked for.

    Raises:
        DataError: naming the first that is there.
    """
    for path in paths if not overwrite else ():
        if path.is_dir():
            if any(not entry.name.startswith(".lock") for entry in path.iterdir()):
                raise DataError(f"{path}: is not empty; give --overwrite, or another folder")
        elif path.exists() or path.is_symlink():
            raise DataError(f"{path}: is there already; give --overwrite, or another name")
