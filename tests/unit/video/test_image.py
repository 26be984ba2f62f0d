"""Still images: upright, at their own size, whole or refused, through the cache of videos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actrep_ray.media.frame_cache import FrameCache
from data_prep.video import FramePlan, VideoError, image_size, plan_image, read_frames
from tests.images import draw_image

SIZE = (96, 128)
_ORIENTATION = 0x0112


def plan_of(path: Path, *, max_pixels: int = 96 * 128) -> FramePlan:
    return plan_image(path, image_size(path), min_pixels=1024, max_pixels=max_pixels, factor=32)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "png_by_another_name.jpg"])
def test_the_pixels_of_a_plan_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    drawn = draw_image(tmp_path / "a.png", 0, SIZE)
    path = tmp_path / name
    if path.suffix == ".bmp":
        Image.open(drawn).save(path)
    else:
        path.write_bytes(drawn.read_bytes())
    plan = plan_of(path)
    assert (plan.is_image, plan.num_frames, plan.height, plan.width) == (True, 1, *SIZE)
    found = read_frames(plan)
    assert found.shape == (1, *SIZE, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], np.asarray(Image.open(drawn)))


def test_a_larger_image_is_shrunk_into_the_budget(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png", 0, (192, 256))
    plan = plan_of(path, max_pixels=96 * 128)
    assert (plan.height, plan.width) == (96, 128)
    small, large = read_frames(plan)[0], np.asarray(Image.open(path))
    np.testing.assert_array_equal(small, large[::2, ::2])  # blocks of one colour


def test_an_image_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    stored = Image.open(draw_image(tmp_path / "a.png", 0, SIZE))
    exif = Image.Exif()
    exif[_ORIENTATION] = 6  # shown a quarter turn clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    assert image_size(tmp_path / "turned.png") == (128, 96)
    shown = read_frames(plan_of(tmp_path / "turned.png"))[0]
    np.testing.assert_array_equal(shown, np.rot90(np.asarray(stored), -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.open(draw_image(tmp_path / "rgb.png", 0, SIZE)).convert(mode)
    image.save(tmp_path / "a.png")
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_frames(plan_of(tmp_path / "a.png"))[0], expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_cut_image_is_refused_and_not_filled_up(tmp_path: Path, name: str) -> None:
    path = draw_image(tmp_path / name, 0, SIZE)
    content = path.read_bytes()
    for share in (0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(VideoError, match=name):
            read_frames(plan_image(path, SIZE, min_pixels=1024, max_pixels=12288, factor=32))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no picture", "cannot be read as an image, expected JPEG, PNG, WEBP, BMP"),
        (b"", "the file is empty"),
        (b"GIF89a" + bytes(40), "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"a\.png: {problem}"):
        image_size(path)
    with pytest.raises(VideoError, match=r"missing\.png: no such image"):
        image_size(tmp_path / "missing.png")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_image(tmp_path / "a.png", 0, SIZE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 128 - 1)
    with pytest.raises(VideoError, match="decompression bomb"):
        image_size(path)


def test_an_image_goes_through_the_cache_of_videos(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 2**20)
    path = draw_image(tmp_path / "a.png", 0, SIZE)
    plan = plan_of(path)
    first, second = cache.get(plan), cache.get(plan)
    assert (cache.num_decoded, cache.num_hits) == (1, 1)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, read_frames(plan))
    path.unlink()
    np.testing.assert_array_equal(cache.get(plan), first)  # whatever became of the file
    draw_image(path, 1, SIZE)
    assert plan_of(path).hash != plan.hash
    assert (cache.get(plan_of(path)) != first).any()
