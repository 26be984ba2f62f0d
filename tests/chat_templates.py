"""Chat templates in the forms that published Qwen models have, put into small checkpoints."""

import json
import shutil
from pathlib import Path

_TURNS = """\
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set content = show(message.content) -%}
{%- if message.role == 'assistant' and '</think>' in content and not loop.last -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
"""


def _template(opened: str) -> str:
    begin = f"'<|im_start|>assistant\\n{opened}'"
    return _TURNS + "{%- if add_generation_prompt -%}{{- " + begin + " -}}{%- endif -%}"


PLAIN = _template("")
THINKING = _template("<think>\\n")
"""Of Qwen3-VL-*-Thinking: the reasoning is opened in every prompt."""
NOT_THINKING = _template("<think>\\n\\n</think>\\n\\n")
"""Of Qwen3 and Qwen3.5 with thinking switched off: an empty block, closed again."""
BARELY_NOT_THINKING = _template("<think></think>")
OTHER_DIALECT = _template("<thinking>\\n")


def give_template(folder: Path, template: str, *, end_tokens: list[int] | None = None) -> Path:
    """Put a chat template into a checkpoint, and `eos_token_id` as published models have it."""
    (folder / "chat_template.jinja").write_text(template)
    if end_tokens is not None:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text())
        # The rest as in a published folder, where sampling settings stand beside the end tokens.
        settings |= {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
        path.write_text(json.dumps(settings | {"eos_token_id": end_tokens}))
    return folder


def copy_model(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint, to give it another template."""
    return Path(shutil.copytree(source, folder))
