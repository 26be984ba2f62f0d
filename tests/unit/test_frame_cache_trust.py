"""What the frame cache does with files and folders that are damaged, planted or another user's."""

import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actrep_ray.config import ConfigError, VideoConfig, load_recipe
from actrep_ray.media import frame_file
from actrep_ray.media.cache_folder import default_folder
from actrep_ray.media.frame_cache import FrameCache
from data_prep.files import DataError
from data_prep.video import FramePlan, VideoError, clip_of_video, plan_frames, read_frames
from data_prep.video_writer import encode_mp4

pytestmark = pytest.mark.lengthy

GIB = 2**30
NUM_PIXEL_BYTES = 8 * 32 * 32 * 3


def make_video(path: Path, seed: int = 0) -> Path:
    frames = np.random.default_rng(seed).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    encode_mp4(path, frames, 12)
    return path


def plan_of(path: Path) -> FramePlan:
    return plan_frames(
        clip_of_video(path),
        fps=4.0,
        min_frames=4,
        max_frames=64,
        min_pixels=1024,
        max_pixels=1024,
        factor=32,
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "noise.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached(folder: Path) -> Path:
    """The file of frames, of which there is one."""
    (path,) = folder.glob("*.frames")
    return path


# --- damaged files


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_for_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def plant_array(path: Path) -> None:
    with path.open("wb") as out:
        np.save(out, np.zeros((8, 32, 32, 3), np.uint8))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: os.truncate(path, 100),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a byte longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a zeroed page": lambda path: path.write_bytes(
        path.read_bytes()[:8192] + bytes(4096) + path.read_bytes()[12288:]
    ),
    "a bit of the header": lambda path: flip(path, 20),
    "the checksum itself": lambda path: flip(path, path.read_bytes().index(b"crc32") + 8),
    "the padding": lambda path: flip(path, 4095),
    "the last bit": lambda path: flip(path, -1, 7),
    "an array of numpy": plant_array,
    "zeros of the right size": lambda path: path.write_bytes(bytes(4096 + NUM_PIXEL_BYTES)),
    "a FIFO": swap_for_fifo,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_decoded_anew(video: Path, folder: Path, damage: Callable[[Path], None]) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    damage(cached(folder))
    cache = FrameCache(folder, GIB)
    assert np.array_equal(cache.get(plan), read_frames(plan))
    assert (cache.num_decoded, cache.num_hits) == (1, 0)
    after = FrameCache(folder, GIB)  # and mended
    assert np.array_equal(after.get(plan), read_frames(plan))
    assert (after.num_decoded, after.num_hits) == (0, 1)


@given(at=st.integers(0, 4096 + NUM_PIXEL_BYTES - 1), bit=st.integers(0, 7))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_caught(video: Path, folder: Path, at: int, bit: int) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    flip(cached(folder), at, bit)
    cache = FrameCache(folder, GIB)
    assert np.array_equal(cache.get(plan), read_frames(plan))
    assert cache.num_decoded == 1


def test_a_file_that_is_written_to_after_it_was_compared_is_compared_again(
    video: Path, folder: Path
) -> None:
    plan = plan_of(video)
    cache = FrameCache(folder, GIB)
    cache.get(plan)
    cache.get(plan)
    flip(cached(folder), 5000)
    assert np.array_equal(cache.get(plan), read_frames(plan))
    assert cache.num_decoded == 2


def test_frames_of_another_plan_are_not_taken_for_those_asked_for(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    other = make_video(tmp_path / "other.mp4", seed=1)
    FrameCache(folder, GIB).get(plan_of(video))
    ours = cached(folder)
    FrameCache(tmp_path / "cache2", GIB).get(plan_of(other))
    shutil.copy(cached(tmp_path / "cache2"), ours)  # sound in itself, of the same shape
    cache = FrameCache(folder, GIB)
    assert np.array_equal(cache.get(plan_of(video)), read_frames(plan_of(video)))
    assert cache.num_decoded == 1


def test_a_folder_in_place_of_a_file_costs_a_decode_each_time(
    video: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    swap_for_folder(cached(folder))
    cache = FrameCache(folder, GIB)
    for _ in range(2):
        assert np.array_equal(cache.get(plan), read_frames(plan))
    assert cache.num_decoded == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Is a directory; clips are decoded each time" in caplog.text


def test_pixels_are_read_through_once_in_a_process(
    video: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    summed: list[int] = []

    def crc32(data: memoryview) -> int:
        summed.append(len(data))
        return zlib.crc32(data)

    monkeypatch.setattr(frame_file, "crc32", crc32)
    cache = FrameCache(folder, GIB)
    for _ in range(5):
        cache.get(plan)
    assert summed == [NUM_PIXEL_BYTES]


# --- planted links, other files, other users


def test_a_planted_link_is_neither_read_nor_written_through(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    path = cached(folder)
    victim = tmp_path / "victim"
    victim.write_bytes(path.read_bytes())  # sound, but it lies elsewhere
    path.unlink()
    path.symlink_to(victim)
    before = victim.read_bytes()
    cache = FrameCache(folder, GIB)
    assert np.array_equal(cache.get(plan), read_frames(plan))
    assert cache.num_decoded == 1
    assert victim.read_bytes() == before
    assert not path.is_symlink()


def test_a_planted_link_at_the_lock_does_not_touch_its_victim(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    path = cached(folder)
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.with_suffix(".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        FrameCache(folder, GIB).get(plan)
    assert victim.read_text() == "precious"


def test_eviction_removes_nothing_but_its_own_files(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    folder.mkdir(0o700)
    (folder / "features.npy").write_bytes(bytes(100_000))
    (folder / "notes.frames").write_text("not a name of ours")
    (folder / ("0" * 32)).write_text("nor this")
    (folder / ".somebody.host.1.00000000.partial").write_text("nor this one")
    (folder / ("0" * 32 + ".frames")).symlink_to(tmp_path / "elsewhere")
    (folder / ("1" * 32 + ".frames")).mkdir()
    theirs = {path.name for path in folder.iterdir()}
    other = make_video(tmp_path / "other.mp4", seed=1)
    for path in (video, other):
        FrameCache(folder, 1).get(plan_of(path))
    left = {path.name for path in folder.iterdir()}
    assert theirs <= left
    assert len([name for name in left - theirs if name.endswith(".frames")]) == 1


def test_folders_and_files_are_for_their_owner_alone(video: Path, folder: Path) -> None:
    old = os.umask(0)
    try:
        FrameCache(folder, GIB).get(plan_of(video))
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(DataError, match=rf"others may write to it \(mode {mode:04o}\)"):
        FrameCache(folder, GIB)


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DataError, match=f"belongs to user {os.getuid()}, expected a folder of"):
        FrameCache(folder, GIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_replaced(video: Path, folder: Path) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    os.chown(cached(folder), 12345, 12345)
    cache = FrameCache(folder, GIB)
    cache.get(plan)
    assert cache.num_decoded == 1
    assert cached(folder).stat().st_uid == 0


def test_a_link_in_place_of_the_folder_is_refused(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    cache = FrameCache(folder, GIB)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    for use in (lambda: FrameCache(folder, GIB), lambda: cache.get(plan_of(video))):
        with pytest.raises(DataError, match="a symbolic link, expected a folder of this user"):
            use()
    assert list((tmp_path / "moved").iterdir()) == []


def test_a_folder_that_is_cleaned_away_in_mid_run_is_made_again(video: Path, folder: Path) -> None:
    cache = FrameCache(folder, GIB)
    shutil.rmtree(folder)
    cache.get(plan_of(video))
    cache.get(plan_of(video))
    assert (cache.num_decoded, cache.num_hits) == (1, 1)


@pytest.fixture
def strict_mask() -> Iterator[None]:
    old = os.umask(0o077)
    yield
    os.umask(old)


@pytest.mark.usefixtures("strict_mask")
def test_sharing_is_asked_for_and_is_for_the_group(video: Path, folder: Path) -> None:
    FrameCache(folder, GIB, is_shared=True).get(plan_of(video))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2770
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o660}
    folder.chmod(0o2777)
    with pytest.raises(DataError, match="everybody may write to it"):
        FrameCache(folder, GIB, is_shared=True)
    folder.chmod(0o2770)
    with pytest.raises(DataError, match=r"video\.shared_cache=true to trust its group"):
        FrameCache(folder, GIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_users_of_a_shared_cache_read_one_another(video: Path, folder: Path) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB, is_shared=True).get(plan)
    for path in folder.iterdir():
        os.chown(path, 12345, 0)
    cache = FrameCache(folder, GIB, is_shared=True)
    assert np.array_equal(cache.get(plan), read_frames(plan))
    assert cache.num_hits == 1


# --- what a file is: its content


def test_copies_of_a_video_share_their_frames(video: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    shutil.copy(video, copy)
    cache = FrameCache(folder, GIB)
    assert np.array_equal(cache.get(plan_of(video)), cache.get(plan_of(copy)))
    assert (cache.num_decoded, cache.num_hits) == (1, 1)


def test_another_video_of_the_same_name_size_and_time_is_another(
    video: Path, folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    other = make_video(tmp_path / "other.mp4", seed=1)
    size = max(video.stat().st_size, other.stat().st_size)
    free = b"free" + bytes(size)  # a box that readers skip
    for path in (video, other):
        missing = size + 8 - path.stat().st_size
        with path.open("ab") as file:
            file.write(missing.to_bytes(4, "big") + free[: missing - 4])
    os.utime(video, ns=(0, 10**18))
    os.utime(other, ns=(0, 10**18))
    plan = plan_of(video)
    first = FrameCache(folder, GIB).get(plan)
    other.replace(video)
    assert plan_of(video) == plan
    cache = FrameCache(folder, GIB)
    second = cache.get(plan)
    assert cache.num_decoded == 1
    assert np.array_equal(second, read_frames(plan))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("is_new_process", [False, True])
@pytest.mark.parametrize("loss", ["vanished", "cut"])
def test_cached_frames_outlive_their_video(
    video: Path, folder: Path, loss: str, is_new_process: bool
) -> None:
    plan = plan_of(video)
    frames = read_frames(plan)
    cache = FrameCache(folder, GIB)
    cache.get(plan)
    if loss == "vanished":
        video.unlink()
    else:
        os.truncate(video, 100)
    if is_new_process:
        cache = FrameCache(folder, GIB)
    num_hits = cache.num_hits
    assert np.array_equal(cache.get(plan), frames)
    assert cache.num_hits == num_hits + 1


def test_a_video_that_vanished_before_it_was_read_is_an_error_of_its_clip(
    video: Path, folder: Path
) -> None:
    plan = plan_of(video)
    video.unlink()
    with pytest.raises(VideoError, match=r"noise\.mp4: no such video"):
        FrameCache(folder, GIB).get(plan)


def test_frames_of_a_video_that_changed_are_not_kept_for_what_it_was(
    video: Path, folder: Path
) -> None:
    plan = plan_of(video)
    make_video(video, seed=1)
    with pytest.raises(VideoError, match=r"noise\.mp4: has changed since its frames were planned"):
        FrameCache(folder, GIB).get(plan)
    assert list(folder.glob("*.frames")) == []


@pytest.mark.parametrize("content", [b"", b"actrep video 1 zz 1 1\n", b"x" * 1000])
def test_a_damaged_note_of_content_is_made_anew(video: Path, folder: Path, content: bytes) -> None:
    plan = plan_of(video)
    FrameCache(folder, GIB).get(plan)
    (note,) = folder.glob("*.video")
    sound = note.read_bytes()
    note.write_bytes(content)
    cache = FrameCache(folder, GIB)
    cache.get(plan)
    assert cache.num_hits == 1
    assert note.read_bytes() == sound


# --- where it lies


def test_where_a_users_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACTREP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / "home/.cache/actrep"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / "home/.cache/actrep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg/actrep"
    monkeypatch.setenv("ACTREP_CACHE", str(tmp_path / "own"))
    assert FrameCache.of(VideoConfig()).folder.path == tmp_path / "own/frames"
    chosen = VideoConfig(cache_dir=str(tmp_path / "recipe"))
    assert FrameCache.of(chosen).folder.path == tmp_path / "recipe"
    monkeypatch.setenv("ACTREP_CACHE", "own")
    with pytest.raises(DataError, match="ACTREP_CACHE='own', expected an absolute path"):
        default_folder()


def test_a_shared_cache_needs_a_folder_that_is_shared() -> None:
    with pytest.raises(ConfigError, match=r"video\.shared_cache=true needs video\.cache_dir"):
        load_recipe(None, ["video.shared_cache=true"])
