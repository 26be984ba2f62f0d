"""What a rank writes for a checkpoint: copied to host memory first, then written in the background.

    rank       gather, copy ──► Snapshot ──► the next step
                                   └─ thread: files ─► fsync ─► hashes ─► listing

Nothing in a snapshot is touched by training, so the thread needs no lock. One at a time.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from actrep_ray.run.manifest import FileEntry, entry_of, write_listing
from actrep_ray.run.saving import SaveError, as_save_errors
from data_prep.files import sync_path


@dataclass
class Snapshot:
    """Files to write, by path within a folder.

    Attributes:
        tensors: Of safetensors files, on the CPU, shared with nothing.
        metadata: Of these, by the same paths.
        contents: Of other files.
    """

    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, other: "Snapshot", below: str = "") -> None:
        """Take in another snapshot's files, in a folder `below` this one's if one is named."""
        start = f"{below}/" if below else ""
        self.tensors |= {f"{start}{name}": found for name, found in other.tensors.items()}
        self.metadata |= {f"{start}{name}": found for name, found in other.metadata.items()}
        self.contents |= {f"{start}{name}": found for name, found in other.contents.items()}

    def write(self, folder: Path) -> list[Path]:
        """Write and sync all files; tensors are let go of as they are written.

        Raises:
            SaveError: if one cannot be written.
        """
        written = []
        with as_save_errors():
            for name, content in self.contents.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                sync_path(path)
                written.append(path)
            while self.tensors:
                name, tensors = self.tensors.popitem()
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_tensors(path, tensors, self.metadata.get(name))
                sync_path(path)
                written.append(path)
        return written


class BackgroundSave:
    """At most one snapshot that is being written by a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, snapshot: Snapshot, folder: Path, rank: int) -> None:
        """Start to write; nothing else may be under way."""
        assert self._thread is None, "two checkpoints at once"
        write = self._writing(snapshot, folder, rank)
        self._thread = threading.Thread(target=write, name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end, whatever it is; who wants to know asks `finish` before."""
        with suppress(SaveError):
            self.finish()

    @property
    def is_over(self) -> bool:
        """Whether nothing is being written."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            SaveError: if something could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _writing(self, snapshot: Snapshot, folder: Path, rank: int) -> Callable[[], None]:
        def write() -> None:
            try:
                written = snapshot.write(folder)
                entries: Mapping[str, FileEntry] = {
                    path.relative_to(folder).as_posix(): entry_of(path, rank) for path in written
                }
                with as_save_errors():
                    write_listing(folder, rank, entries)
            except BaseException as error:  # noqa: BLE001 - raised by `finish`
                self._error = error
            give_back_freed()

        return write


def give_back_freed() -> None:
    """Return freed memory to the system: the allocator of glibc keeps it, and a rank would grow."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    path.touch()
    mode = path.stat().st_mode  # as others may read; the library's own file is for its owner alone
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise SaveError(f"{path}: {error}") from error
    path.chmod(mode)
