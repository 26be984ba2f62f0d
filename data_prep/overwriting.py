"""Nothing that took work is written over unasked."""

from pathlib import Path

from data_prep.files import DataError


def refuse_existing(*files: Path, overwrite: bool = False) -> None:
    """Refuse to write over files that are there, and where no file can be.

    Args:
        files: What is to be written.
        overwrite: Whether to write over them was asked for.

    Raises:
        DataError: naming the first that is there, or what is in its way.
    """
    for path in files:
        _refuse_what_is_no_file(path)
        if not overwrite and (path.exists() or path.is_symlink()):
            raise DataError(f"{path}: is there already; give --overwrite, or another name")


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file to write")
    above = next((folder for folder in path.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise DataError(f"{path}: {above} is a file, expected a folder to write into")


def refuse_input(written: Path, *read: Path) -> None:
    """Refuse to write over what is read, whatever was asked for.

    Raises:
        DataError: naming it.
    """
    if any(written.exists() and path.exists() and written.samefile(path) for path in read):
        raise DataError(f"{written}: is what is read, give another name")


def refuse_filled(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse to write over a folder that holds something, or a file in its place.

    Raises:
        DataError: naming it.
    """
    if not folder.is_dir():
        refuse_existing(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; give --overwrite, or another folder")
