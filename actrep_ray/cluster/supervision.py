"""The one notion of a lost worker."""

import time
from typing import Any

import ray

_POLL_S = 2.0
_PAUSE_S = 0.5
_CAUSE_S = 120.0  # Ray gives a node up after about 15 s


def cause_of_loss(actor: Any, error: Exception) -> Exception:
    """Why calls of an actor fail, when Ray knows; the actor has ended then.

    Of an actor whose node was lost Ray says at first only that it cannot be reached; a little
    later, whether its process or its node has died. An actor that answers again is ended: whoever
    asks has given its work to others.

    Args:
        actor: Its handle.
        error: What a call raised.
    """
    deadline = time.monotonic() + _CAUSE_S
    while isinstance(error, ray.exceptions.ActorUnavailableError):
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=_POLL_S)
            break
        except ray.exceptions.GetTimeoutError:
            pass
        except ray.exceptions.RayActorError as found:
            error = found
            time.sleep(_PAUSE_S)
        if time.monotonic() > deadline:
            break
    ray.kill(actor)
    return error


def has_died_with_node(error: Exception) -> bool:
    """Whether an actor ended because its node did, and not by its own fault."""
    return isinstance(error, ray.exceptions.ActorDiedError) and "node has died" in str(error)
