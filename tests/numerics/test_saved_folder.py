"""What of a checkpoint's folder is not weights comes out of the learner as it went in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.models.qwen_vl import QwenVLInputs
from tests.chat_templates import THINKING, copy_model, give_template

IM_END, END_OF_TEXT = 2, 0


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [IM_END, END_OF_TEXT], "do_sample": True, "temperature": 0.6},
        {"eos_token_id": [IM_END, END_OF_TEXT], "temperature": 0.6, "top_p": 0.9},  # no do_sample
        {"eos_token_id": IM_END},
        None,
    ],
    ids=["published", "not sampling", "one", "no file"],
)
def test_generation_settings_and_template_are_kept(
    settings: dict[str, Any] | None,
    tiny_model: Callable[..., Path],
    make_recipe: Any,
    make_worker: Any,
    tmp_path: Path,
) -> None:
    source = give_template(copy_model(tiny_model(), tmp_path / "source"), THINKING)
    path = source / "generation_config.json"
    if settings is None:
        path.unlink()
    else:
        path.write_text(json.dumps(settings))
    worker = make_worker(make_recipe("learner.ema_decay=0.5"), source)
    worker.save_model(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "saved" / "ema"):
        for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
            if (source / name).is_file():
                assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert QwenVLInputs(folder).end_ids == QwenVLInputs(source).end_ids
        assert QwenVLInputs(folder).opened == "<think>\n"


def test_a_saved_model_says_which_frames_it_was_trained_on(
    tiny_model: Callable[..., Path], make_recipe: Any, make_worker: Any, tmp_path: Path
) -> None:
    recipe = make_recipe("learner.ema_decay=0.5", "video.fps=5", "video.max_frames=77")
    make_worker(recipe, tiny_model()).save_model(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "saved" / "ema"):
        shown = QwenVLInputs(folder).processor.video_processor
        assert (shown.fps, shown.max_frames) == (5.0, 77)
        assert shown.size["longest_edge"] == recipe.video.max_pixels
        assert "| frames a second | 5," in (folder / "README.md").read_text()
