"""README.md of a checkpoint: which frames it was trained on, and how others are asked with them."""

import json
import shlex
from pathlib import Path

from actrep_ray.config import Recipe
from actrep_ray.models.serving import VLLM_SERVER, ServedModel, server_arguments

FILE = "README.md"

_TEXT = """\
# {name}

A `{family}` trained by actrep-ray (task: {task}; settings: `recipe.json`). The answers that it was
trained to give are to this question{asked}:

> {question}

## The clips that it was trained on

{clips} What they look like is in `looks.json`: `actrep count` compares a video with it, and says of
one that looks otherwise that the answer is not to be trusted.

## The frames that it was trained on

| | |
|---|---|
| frames a second | {fps:g}, from the clip's first on, each the one that is shown then |
| frames of a clip | {min_frames} to {max_frames}, spread evenly where the rate gives others |
| pixels of one frame | {min_pixels:,} to {max_pixels:,}, sides multiples of {factor} |

The processor files beside this one say so to transformers and vLLM. Asked with other frames (their
own default is 2 a second) it answers differently.

## Serving

Exactly these frames, from any video file, on port 8000 of this machine alone:

```bash
actrep serve {folder}
```

vLLM without actrep-ray:

```bash
{command}
```

A request (answers are greedy by the commands above):

```bash
{request}
```

transformers (its decoder of videos is torchcodec):

```python
messages = [{{"role": "user", "content": [{{"type": "video", "path": "VIDEO.mp4"}},
                                        {{"type": "text", "text": {quoted}}}]}}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    do_sample_frames=True, fps={fps:g},
)
```

Both take an even number of frames and spread them over the whole file: what `actrep serve` sees
where the clip's seconds times {fps:g} are an even whole number. Frames that have to be shrunk go
through another filter in any case.{note}
"""

_POSITIONS = """ transformers gives this family other positions
than vLLM and training: text goes on behind a video as if it had one frame, and Qwen2.5-VL's frames
have whole seconds. Its answers differ with the same prompt."""


def card(recipe: Recipe, family: str, factor: int, question: str) -> str:
    """The text.

    Args:
        recipe: Of the training.
        family: Of Qwen-VL.
        factor: Sides of a frame are multiples of this, pixels.
        question: About a clip, as a model reads it; `{action}` where each has its own.
    """
    video = recipe.video
    served = ServedModel("FOLDER", family, recipe, recipe.name, factor)
    arguments = server_arguments(served, is_ours=False)
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    command = [f"python -m {VLLM_SERVER} --host 127.0.0.1"]
    command += [f"  {option} {shlex.quote(value)}" for option, value in pairs]
    return _TEXT.format(
        name=recipe.name,
        clips=_clips_of(recipe),
        family=family,
        task=recipe.task if "/" not in recipe.task else recipe.task.rpartition("/")[2],
        asked=_asked(recipe, question),
        question="\n> ".join(question.splitlines()),
        quoted=json.dumps(question),
        fps=video.fps,
        min_frames=video.min_frames,
        max_frames=video.max_frames,
        min_pixels=video.min_pixels,
        max_pixels=video.max_pixels,
        factor=factor,
        folder="FOLDER",
        command=" \\\n".join(command),
        request=request_command(recipe.name, question),
        note="" if family.startswith("qwen3_vl") else _POSITIONS,
    )


def _asked(recipe: Recipe, question: str) -> str:
    """What differs from clip to clip in a question."""
    if "{action}" in question:
        return ", the clip's action in the place of `{action}`, also in the requests below"
    if "{candidates}" in recipe.data.question and recipe.data.candidates == "truncated":
        return " about the first clip; each offers classes of its own, the right one among them"
    return ""


def _clips_of(recipe: Recipe) -> str:
    """Which clips, in a sentence; of their folder the last name alone, for it may be private."""
    path = Path(recipe.data.path)
    sets = f", sets {', '.join(recipe.data.datasets)}" if recipe.data.datasets else ""
    return f"Split `train` of `{path.parent.name}/{path.name}`{sets}."


def request_command(model: str, question: str, port: int = 8000) -> str:
    """A shell command that sends VIDEO.mp4 and a question to a server on this machine."""
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,@VIDEO@"}}
    content = [video, {"type": "text", "text": question}]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    shape = body.replace("%", "%%").replace("\\", "\\\\").replace("@VIDEO@", "%s")
    return (
        f'printf {shlex.quote(shape)} "$(base64 -w0 VIDEO.mp4)" |\n'
        f"  curl -s http://127.0.0.1:{port}/v1/chat/completions "
        "-H 'Content-Type: application/json' -d @-"
    )
