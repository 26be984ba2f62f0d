"""How a program of this environment is typed where its user stands.

A command that we print is copied. `actrep` alone is found only where the environment is active;
elsewhere the path beside this interpreter works.
"""

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """What starts a program of this environment from the working folder.

    Args:
        name: For example `actrep` or `tensorboard`.

    Returns:
        The name where PATH finds that very file, or where this environment has no such program;
        else its path, relative to the working folder if it lies below.
    """
    beside = Path(sys.executable).parent / name
    if not beside.is_file():
        return name
    found = shutil.which(name)
    if found is not None and beside.samefile(found):
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
