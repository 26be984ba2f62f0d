"""A checkpoint that is being written while the run goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from actrep_ray.run.manifest import num_listings
from data_prep.files import DataError

T = TypeVar("T")

_POLL_S = 0.05
_DISK_S = 600.0  # longest wait for files to be hashed, synced and renamed


class SaveError(DataError):
    """A checkpoint that could not be written; the message says which file and why."""


class SavesItself(Protocol):
    """What a learner pool does for a checkpoint."""

    def begin_save(self, folder: Path) -> int:
        """Copy everything to host memory; what follows is written in the background.

        Returns:
            How many ranks leave a listing (`manifest.write_listing`) when theirs is on the disk.
        """
        ...

    def is_saved(self) -> bool:
        """Whether all is written, without waiting; SaveError if it cannot be."""
        ...

    def finish_save(self) -> None:
        """Wait until all is written; SaveError if it cannot be."""
        ...


class Saving(Generic[T]):
    """Completed once: by its own thread as soon as all listings are there, or by `finish`.

    Args:
        partial: Folder that is written into.
        num_listings_wanted: Listings that will be there when all ranks are done.
        complete: Makes the checkpoint of it.
        abandon: Removes it.
    """

    def __init__(
        self,
        partial: Path,
        num_listings_wanted: int,
        complete: Callable[[], T],
        abandon: Callable[[], None],
    ) -> None:
        self._partial = partial
        self._num_listings_wanted = num_listings_wanted
        self._complete = complete
        self._abandon = abandon
        self._result: T | None = None
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it is complete, failed or abandoned; `finish` does not wait then."""
        return self._result is not None or self._error is not None

    def finish(self) -> T:
        """Complete it, if that is not done yet; to be called when the ranks have written.

        Raises:
            SaveError: if it cannot be completed.
        """
        self._end_watch()
        if not self.is_over:
            self._try()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def settle(self, grace_s: float) -> T | None:
        """The result if it comes in so many seconds; else it is abandoned, and None."""
        self._thread.join(grace_s)
        self.abandon()
        return self._result

    def abandon(self) -> None:
        """Remove it, unless it is complete."""
        self._end_watch()
        if not self.is_over:
            self._error = SaveError(f"{self._partial}: abandoned")
            self._abandon()

    def _end_watch(self) -> None:
        """Stop to watch, or to complete; what a disk holds up for ever is left to its thread."""
        self._stop.set()
        self._thread.join(_DISK_S)
        if self._thread.is_alive() and self._error is None:
            self._error = SaveError(f"{self._partial}: the disk did not answer for {_DISK_S:g} s")

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            if num_listings(self._partial) >= self._num_listings_wanted:
                self._try()
                return

    def _try(self) -> None:
        try:
            self._result = self._complete()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks for it
            self._error = error


@contextmanager
def as_save_errors() -> Iterator[None]:
    """Let what a disk refuses be a `SaveError` with the same words."""
    try:
        yield
    except SaveError:
        raise
    except (OSError, DataError) as error:
        raise SaveError(str(error)) from error
