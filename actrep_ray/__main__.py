"""``python -m actrep_ray``: the ``actrep`` command where the working directory holds the package.

A submitted Ray job runs it, so that the code which travelled with the job is the code that runs.
The Python is that of the node: the one that `ray start` was run with.
"""

import sys
from importlib.util import find_spec

from actrep_ray.cli.main import main

_NEEDED = ("numpy", "pydantic", "rich", "yaml")

if __name__ == "__main__":
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(
            f"actrep: error: {sys.executable} has no module {missing[0]!r}: it is not the "
            "environment of `./launch.sh setup`. A submitted job runs the Python that Ray was "
            "started with on the node: start it as .venv/bin/ray start"
        )
    sys.exit(main())
