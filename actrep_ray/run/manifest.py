"""What a checkpoint consists of: `manifest.json`, by which damage is told before anything loads it.

    {"format": 2, "step": 50, "run": "9f0c...",
     "files": {"model.safetensors": {"size": 3087468, "xxh3": "4fd1...", "rank": 0}, ...},
     "xxh3": "of all the rest"}

Any number of ranks write any number of files; each lists its own (`write_listing`), and
whoever completes the checkpoint joins them and lists the rest. A hash tells accidents (a flipped
bit, a page of zeros, a cut), not forgery; XXH3 of 128 bits reads 7 GB/s where SHA-256 reads 0.9.

Formats: 1 has no manifest and is trusted as far as its lengths go; 2 is this one; a later one is
refused by its number.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from data_prep.files import DataError, read_object, write_json

FORMAT = 2
NAME = "manifest.json"
TRAINING = "training"
"""Folder of what only a resumed run reads."""

Depth = Literal["lengths", "model", "all"]
"""How a checkpoint is checked: all files by length; the model alone by hash; all by hash."""

_LISTING = re.compile(r"files-(\d{5})\.json")


class DamageError(DataError):
    """A checkpoint that cannot be used; the message says why, not which one."""


@dataclass(frozen=True)
class FileEntry:
    """One file as it was written.

    Attributes:
        size: Its length, bytes.
        xxh3: Its hash, hexadecimal.
        rank: The learner rank that wrote it; None for the driver.
    """

    size: int
    xxh3: str
    rank: int | None = None


@dataclass(frozen=True)
class Manifest:
    """All files of a checkpoint, and whose it is.

    Attributes:
        step: Steps that were finished.
        run: Id of the run; None for a folder without a record of one.
        files: By path within the folder.
    """

    step: int
    run: str | None
    files: Mapping[str, FileEntry]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size for entry in self.files.values())


def entry_of(path: Path, rank: int | None = None) -> FileEntry:
    """The entry of a file that was just written."""
    return FileEntry(path.stat().st_size, hash_of_file(path), rank)


def hash_of_file(path: Path) -> str:
    """XXH3 of 128 bits of a file, hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


# --- writing


def write_listing(folder: Path, rank: int, files: Mapping[str, FileEntry]) -> None:
    """Enter what a rank has written, when all of it is on the disk."""
    listed = {name: asdict(entry) for name, entry in files.items()}
    write_json(folder / f"files-{rank:05d}.json", listed, indent=None)


def num_listings(folder: Path) -> int:
    """How many ranks have written all of theirs."""
    return sum(1 for path in folder.glob("files-*.json") if _LISTING.fullmatch(path.name))


def write_manifest(folder: Path, step: int, run: str | None) -> Manifest:
    """List all files of a folder: those of its listings, which go, and the rest, read again."""
    listed: dict[str, FileEntry] = {}
    for path in sorted(folder.glob("files-*.json")):
        values = read_object(path, "what a rank has written")
        listed |= {name: FileEntry(**entry) for name, entry in values.items()}
        path.unlink()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in listed and name != NAME:
            listed[name] = entry_of(path)
    manifest = Manifest(step, run, dict(sorted(listed.items())))
    rest = _content(manifest)
    write_json(folder / NAME, {**rest, "xxh3": _hash_of_json(rest)}, indent=1)
    return manifest


# --- reading


def read_manifest(folder: Path) -> Manifest:
    """What `write_manifest` wrote.

    Raises:
        DamageError: if there is none, it is not as it was written, or of a later format.
    """
    path = folder / NAME
    if not path.is_file():
        raise DamageError(f"no {NAME} in it")
    try:
        content = read_object(path, "the files of a checkpoint")
    except DataError as error:
        raise DamageError(f"{NAME} is damaged: {str(error).removeprefix(str(path))}") from error
    found = content.pop("xxh3", None)
    if isinstance(number := content.get("format"), int) and number > FORMAT:
        raise DamageError(f"format {number}, of a later version; this one reads up to {FORMAT}")
    if found != _hash_of_json(content):
        raise DamageError(f"{NAME} is damaged: its hash is another one")
    files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    return Manifest(content["step"], content["run"], files)


def check_files(folder: Path, manifest: Manifest, depth: Depth) -> None:
    """Compare a folder with its manifest; files that it does not list are not looked at.

    Raises:
        DamageError: naming the first file that is missing, cut or changed.
    """
    names = [name for name in manifest.files if depth != "model" or "/" not in name]
    for name in names:
        path, expected = folder / name, manifest.files[name].size
        if not path.is_file():
            raise DamageError(f"{name} is missing")
        if (size := path.stat().st_size) != expected:
            raise DamageError(f"{name} holds {size} bytes of {expected}")
    if depth == "lengths":
        return
    for name in names:
        try:
            found = hash_of_file(folder / name)
        except OSError as error:  # of a disk that cannot read its own sectors too
            raise DamageError(f"{name} cannot be read: {error.strerror}") from error
        if found != manifest.files[name].xxh3:
            raise DamageError(f"{name} is damaged: its hash is another one")


def _content(manifest: Manifest) -> dict[str, Any]:
    files = {name: asdict(entry) for name, entry in manifest.files.items()}
    return {"format": FORMAT, "step": manifest.step, "run": manifest.run, "files": files}


def _hash_of_json(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()
