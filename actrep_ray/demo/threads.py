"""A thread that nobody waits for at the end of the process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """What a function comes to that takes long; whoever waits may give up, and the process may end.

    A thread of a pool would be waited for by the end of the process, however long it takes.

    Args:
        function: Is called in a thread of its own.
    """
    told: Future[T] = Future()
    told.set_running_or_notify_cancel()  # so that it is told though nobody waits any more

    def run() -> None:
        try:
            told.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            told.set_exception(error)

    threading.Thread(target=run, name="count", daemon=True).start()
    return await asyncio.wrap_future(told)
