"""A folder that lmms-eval runs as it stands: its own task about one's own clips, and our model.

    FOLDER/clips.jsonl          {"id": "a", "video": "/data/a.mp4", "count": 3,
                                 "text_description": "squat"}
    FOLDER/actrep_SET.yaml      the task: lmms-eval's functions and lengths, these rows
    FOLDER/utils.py             where the task finds lmms-eval's functions
    FOLDER/run_lmms_eval.py     lmms-eval with a model that asks `actrep serve`

lmms-eval shows whole videos: a clip that is a part of one, or that images are shown before, is left
out.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from actrep_ray.tasks.lmms_eval import MAX_TOKENS
from data_prep.chat_content import is_whole
from data_prep.files import DataError, write_lines
from data_prep.schema import Clip
from data_prep.video import VideoError

RUNNER = "run_lmms_eval.py"
_TASKS = {"repcount": "repcount", "countix": "countix", "ovr": "ovr_kinetics"}
_TASK = """\
# lmms-eval's task {task}, about the clips beside this file.
task: actrep_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{task}_doc_to_visual
doc_to_text: !function utils.{task}_doc_to_text
doc_to_target: !function utils.{task}_doc_to_target
process_results: !function utils.{task}_process_results
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: {error}
    aggregation: mean
    higher_is_better: false
  - metric: obo
    aggregation: mean
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: "\\nAnswer with a single integer."
"""


def write_lmms_eval(
    name: str, clips: Sequence[Clip], folder: Path, progress: Callable[[], None]
) -> tuple[int, Counter[str]]:
    """Write such a folder.

    Args:
        name: Of the data set: one that lmms-eval has a task for.
        clips: With absolute paths of their videos.
        folder: Gets the files.
        progress: Is told of each clip.

    Returns:
        How many clips there are in it, and those left out by reason.

    Raises:
        DataError: if none has a row.
    """
    left_out, rows = Counter[str](), list[str]()
    for clip in clips:
        try:
            if clip.images:
                left_out["images_before_it"] += 1
            elif is_whole(clip):
                row = {"id": clip.id, "video": clip.video, "count": clip.count}
                rows.append(json.dumps({**row, "text_description": clip.action}))
            else:
                left_out["part_of_a_video"] += 1
        except VideoError:
            left_out["unreadable_video"] += 1
        progress()
    if not rows:
        told = ", ".join(f"{reason} {number}" for reason, number in left_out.most_common())
        raise DataError(f"{folder}: none of {len(clips)} clips has a row to write ({told})")
    task, path = _TASKS[name], folder / "clips.jsonl"
    write_lines(path, rows)
    text = _TASK.format(
        task=task,
        name=name,
        rows=json.dumps(str(path.absolute())),
        max_tokens=MAX_TOKENS,
        error="mae" if name == "ovr" else "mae_norm",
    )
    (folder / f"actrep_{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "utils.py").write_text(
        f"from lmms_eval.tasks.{task}.utils import *  # noqa: F403\n", encoding="utf-8"
    )
    runner = files("actrep_ray.tasks") / "assets" / "lmms_eval" / RUNNER
    (folder / RUNNER).write_text(runner.read_text(encoding="utf-8"), encoding="utf-8")
    return len(rows), left_out
