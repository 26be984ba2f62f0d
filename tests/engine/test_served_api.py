"""`evaluate --method api` of a served checkpoint gives the answers of `evaluate --checkpoint`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.config import override
from actrep_ray.evaluation.api_model import prepare_api_evaluation
from actrep_ray.models.qwen_vl import QwenVLInputs
from data_prep.chat_settings import ChatSettings
from data_prep.schema import write_clips
from tests.engine.test_served_frames import (
    NUM_FILES,
    evaluated,
    serving,
    trained,
    write_videos,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_served_checkpoint_is_judged_as_it_is_by_itself(
    checkpoint: Callable[[str, int, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model, recipe = trained(checkpoint("qwen3_vl", 3, False), tmp_path)
    found = write_videos(tmp_path / "videos", is_even=False)
    clips = [replace(clip, id=f"{i}", split="test") for i, clip in enumerate(found)]
    write_clips(tmp_path / "clips.jsonl", clips)
    recipe = override(recipe, [f"data.path={json.dumps(str(tmp_path / 'clips.jsonl'))}"])
    inputs = QwenVLInputs(model)
    kept = {
        "stop_token_ids": list(inputs.end_ids),
        "logit_bias": {str(token): -100 for token in inputs.visual_token_ids},
    }
    with serving(recipe, model) as url:
        job = prepare_api_evaluation(
            recipe,
            ChatSettings(
                url,
                "served",
                temperature=0.0,
                max_tokens=recipe.rollout.max_response_tokens,
                extra_body=json.dumps(kept),
            ),
            sends="video",
            split="test",
            out_dir=tmp_path,
            name="served",
        )
        report = job.run(lambda _: None)
    assert (report.num_sent, report.failed, report.unanswered) == (NUM_FILES, {}, [])
    rows = [json.loads(line) for line in job.path.read_text().splitlines()]
    assert [row["clip_id"] for row in rows] == [clip.id for clip in clips]
    # A server keeps back the bytes of a character that an answer breaks off in.
    answers = [text.strip().rstrip("\ufffd") for text in evaluated(clips, model, recipe)]
    assert len(set(answers)) > NUM_FILES // 5  # frames are looked at
    assert [row["text"].rstrip("\ufffd") for row in rows] == answers
