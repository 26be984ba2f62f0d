"""`ray ARGUMENTS` that waits five minutes for a node to start, as a busy machine needs.

Ray itself ends a node that has not reported after 30 seconds; there is no setting for it.
"""

import time
from typing import Any

import ray._private.services as services
from ray.scripts.scripts import main

_WAIT_S = 300.0
_get_node = services.get_node


def get_node(*arguments: Any, **options: Any) -> Any:
    """As Ray's own, for longer."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            return _get_node(*arguments, **options)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    services.get_node = get_node
    main()
