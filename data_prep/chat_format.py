"""Rows of other trainers' SFT data: a question about a video and its answer, as a conversation.

    sharegpt  LLaMA-Factory   {"conversations": [{"from": "human", "value": "<video>How often ..."},
                              {"from": "gpt", "value": "<think>..."}], "videos": ["/data/a.mp4"]}
    swift     ms-swift        {"messages": [{"role": "user", "content": "<video>How often ..."},
                              {"role": "assistant", "content": "<think>..."}],
                              "videos": ["/data/a.mp4"],
                              "chat_template_kwargs": {"video_start": 2.0, "video_end": 9.5}}

LLaMA-Factory shows whole videos: a clip that is a part of one has no row there. ms-swift hands
`chat_template_kwargs` of a row to qwen_vl_utils, which cuts the window.

`id`, `dataset`, `split` and `action` stand beside; both trainers leave them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VIDEO = "<video>"
"""Where a trainer puts the video."""

PLACEHOLDERS = (VIDEO, "<image>", "<audio>")
"""Where trainers put media: none of them may stand in a question or an answer of ours."""

WINDOW, START, END = "chat_template_kwargs", "video_start", "video_end"

OWN = ("id", "dataset", "split", "action")
"""What is kept of a clip beside the conversation."""


@dataclass(frozen=True)
class ChatFormat:
    """How a trainer names what a row holds.

    Attributes:
        messages: The conversation.
        role: Of a message: who says it.
        content: Of a message: what is said.
        user: Who asks.
        assistant: Who answers.
        has_windows: Whether a row may be about a part of its video.
    """

    messages: str
    role: str
    content: str
    user: str
    assistant: str
    has_windows: bool

    def row(
        self, question: str, answer: str, video: str, window: tuple[float, float] | None
    ) -> dict[str, Any]:
        """One question about a video, and its answer.

        Args:
            question: Without a placeholder.
            answer: The whole of it.
            video: Path of the file.
            window: Start and end in seconds from the video's first frame; None is all of it.
        """
        said = ((self.user, f"{VIDEO}{question}"), (self.assistant, answer))
        row: dict[str, Any] = {
            self.messages: [{self.role: who, self.content: text} for who, text in said],
            "videos": [video],
        }
        if window is not None:
            assert self.has_windows, "a part of a video has no row in this format"
            row[WINDOW] = {START: window[0], END: window[1]}
        return row


FORMATS: Mapping[str, ChatFormat] = {
    "sharegpt": ChatFormat("conversations", "from", "value", "human", "gpt", has_windows=False),
    "swift": ChatFormat("messages", "role", "content", "user", "assistant", has_windows=True),
}
