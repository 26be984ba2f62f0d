"""What a teacher is shown and told: frames with their times, the labels, and the form to keep.

The prompt holds the labels, so that the teacher explains a known answer and need not find it. What
it writes is then checked against them (`data_prep.cot.rejection`), and may not say that it was
told.
"""

import re
from typing import Any

from data_prep.chat_content import frames_content
from data_prep.references import reference_of
from data_prep.schema import Clip
from data_prep.teachers.settings import ApiSettings
from data_prep.video import FramePlan, plan_frames
from rewards.grammar.write import Response, render, round_cycles

_FRAME_FACTOR = 32  # of a frame's sides; Qwen-VL's own is 28 or 32, others do not care
_MIN_FRAMES = 2
_OBSERVATION = "[what is seen: who or what moves, and how; one or two sentences]"
_DEFINITION = "[from where to where one repetition goes; one line]"
_CHECK = "[what the times of the repetitions say about the total; one line]"
_TELLS = re.compile(
    r"ground.truth|annotat|\blabel|\b(?:was|were|been|am|as) (?:given|told|provided|stated)|"
    r"\bthe prompt\b|\binstruction|\[",
    re.IGNORECASE,
)


def prompt_for(clip: Clip, dialect: str) -> str:
    """The text that follows the frames."""
    action = clip.action.replace("_", " ")
    times = "once" if clip.count == 1 else f"{clip.count} times"
    known = f'In this clip the action "{action}" is repeated {times}.'
    if clip.action == "unknown":
        known = f"In this clip an action is repeated {times}."
    form = _form(clip, dialect)
    copied = "the Total line and the answer"
    listing = ""
    if reference_of(clip).cycles:
        copied = "the lines that begin with rep, the Total line and the answer"
    elif clip.count:
        listing = (
            f"\nList {times.replace(' times', ' repetitions')} in the order of time, numbered from "
            "rep1, one to a line: start and end in seconds with one decimal, from the times before "
            "the frames; none may overlap."
        )
    return (
        "The images are frames of one video clip in order, each after its time in seconds.\n"
        f"{known}\n"
        "Write down how a careful viewer, who sees nothing but the clip, works this out. Keep "
        "exactly to the following form, put your own words in place of each pair of brackets, and "
        f"write nothing else:\n\n{form}\n{listing}\n"
        f"Copy {copied} as they stand. Do not say that the action, the times or the number were "
        "told to you."
    ).strip()


def completed(text: str, dialect: str) -> str:
    """A teacher's answer as a whole, where its server's chat template opened the reasoning.

    Such a server hands out only what the model wrote behind the tag: the answer without it, or what
    the model thought for itself and then the answer. Which, if either, is right is checked later.
    """
    opening, closing = f"<{dialect}>", f"</{dialect}>"
    before, is_closed, after = text.partition(closing)
    if not is_closed or opening in before:
        return text
    return after.strip() if opening in after else f"{opening}\n{text}"


def says_that_it_was_told(text: str) -> bool:
    """Whether an answer speaks of labels or of its instructions, or left a bracket to fill in."""
    return _TELLS.search(text) is not None


def plan_for(clip: Clip, settings: ApiSettings) -> FramePlan:
    """The frames that are sent.

    Raises:
        VideoError: if the video is missing or empty.
    """
    return plan_frames(
        clip,
        fps=settings.fps,
        min_frames=min(_MIN_FRAMES, settings.max_frames),
        max_frames=settings.max_frames,
        min_pixels=_FRAME_FACTOR**2,
        max_pixels=settings.max_pixels,
        factor=_FRAME_FACTOR,
    )


def content_for(plan: FramePlan, prompt: str, jpeg_quality: int) -> list[dict[str, Any]]:
    """The message: each frame as a JPEG after its time, then the prompt.

    Raises:
        VideoError: if the video cannot be decoded.
    """
    return [*frames_content(plan, jpeg_quality), {"type": "text", "text": prompt}]


def _form(clip: Clip, dialect: str) -> str:
    cycles = reference_of(clip).cycles or ()
    text = render(
        Response(
            observation=_OBSERVATION,
            definition=_DEFINITION,
            cycles=round_cycles(cycles),
            check=_CHECK,
            total=clip.count,
            answer=clip.count,
        ),
        dialect=dialect,
    )
    if clip.count and not cycles:
        text = text.replace("\nCheck:", "\nrep1: [start]-[end]s\nCheck:")
    return text
