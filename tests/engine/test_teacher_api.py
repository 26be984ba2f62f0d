"""The teacher behind an API against vLLM's own OpenAI server with the small model on a CPU."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actrep_ray.models.serving import VLLM_SERVER, cpu_arguments, cpu_environment
from actrep_ray.models.tiny import write_base_model
from data_prep.chat_errors import ApiError
from data_prep.schema import Clip
from data_prep.teachers.answers import report_path
from data_prep.teachers.api import ask_api, journal_path
from data_prep.teachers.settings import ApiSettings
from tests.engine.servers import started
from tests.free_port import free_port

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

SECRET = "sk-of-the-local-server"


@dataclass(frozen=True)
class Server:
    """vLLM's server, started."""

    port: int
    output: list[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = write_base_model(tmp_path_factory.mktemp("model"))
    port = free_port()
    command = [
        sys.executable, "-m", VLLM_SERVER, "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--api-key", SECRET, "--max-model-len", "2048", "--max-num-seqs", "8",
        "--generation-config", "vllm", "--limit-mm-per-prompt", '{"image": 16, "video": 0}',
        *cpu_arguments("qwen3_vl"),
    ]  # fmt: skip
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with started(command, cpu_environment(num_threads=1) | more) as output:
        yield Server(port, output)


def test_vllms_own_server_is_asked_paid_once_and_judged(
    server: Server, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    out = tmp_path / "cot.jsonl"
    settings = ApiSettings(
        f"http://127.0.0.1:{server.port}/v1",
        "tiny",
        api_key_env="TEACHER_KEY",
        num_candidates=3,
        max_tokens=48,
        max_frames=8,
        max_pixels=32 * 32,
        temperature=1.0,
    )
    report = ask_api(clips, out, settings)
    candidates = report.figures["candidates"]
    assert report.num_clips == len(clips)
    assert candidates["asked"] == candidates["accepted"] + sum(candidates["rejected"].values())
    assert report.num_accepted == candidates["accepted"]
    # A model that was never taught to count is not believed: its texts do not even parse.
    assert set(candidates["rejected"]) <= {"empty", "malformed", "truncated", "wrong_count"}
    assert report.figures["requests"] == {"sent": candidates["asked"], "failed": {}}
    tokens = report.figures["tokens"]
    assert tokens["prompt"] > 100 * candidates["asked"]
    assert 0 < tokens["completion"] <= 48 * candidates["asked"]
    again = ask_api(clips, out, settings)
    assert again.figures["candidates"]["asked"] == 0
    assert again.figures["candidates"]["reused"] == candidates["asked"]

    # Frames are seen: more of them make a longer prompt.
    short = ask_api(clips, tmp_path / "short.jsonl", replace(settings, max_frames=2))
    per_request = short.figures["tokens"]["prompt"] / short.figures["candidates"]["asked"]
    assert per_request < tokens["prompt"] / candidates["asked"] - 6

    monkeypatch.setenv("TEACHER_KEY", "sk-wrong-key")
    with pytest.raises(ApiError, match="answered 401") as error:
        ask_api(clips, tmp_path / "refused.jsonl", settings)
    assert "sk-wrong-key" not in str(error.value)
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    with pytest.raises(ApiError, match=r"answered 404: .*not exist"):
        ask_api(clips, tmp_path / "absent.jsonl", replace(settings, model="absent"))
    for path in (out, journal_path(out), report_path(out)):
        assert SECRET not in path.read_text()
