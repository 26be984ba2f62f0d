"""``python -m actrep_ray``: the ``actrep`` command where the working directory holds the package.

A submitted Ray job runs it, so that the code which travelled with the job is the code that runs.
"""

import sys

from actrep_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
