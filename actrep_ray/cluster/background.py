"""Threads of the driver's process that wait for something on its behalf."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(function: Callable[[], T], name: str = "background") -> Future[T]:
    """Call a function in a thread that never holds up the end of the process.

    A pool's threads would be waited for on the way out, and a start of workers that is cut short
    by ctrl-C may not return.

    Args:
        function: What to call; arguments are bound by `functools.partial`.
        name: Of the thread, for whoever looks at a stack.

    Returns:
        What holds the result, or what was raised.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised again by `result()`
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, name=name, daemon=True).start()
    return future
