"""The page of all settings, written from their definitions: `docs/settings.md`.

.venv/bin/python -m actrep_ray.config.page docs/settings.md
"""

import json
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from actrep_ray.config.recipe import Recipe
from actrep_ray.config.section import Section
from data_prep.files import write_lines

_HEAD = """\
# Settings

Every setting of a recipe with its default, written by
`.venv/bin/python -m actrep_ray.config.page docs/settings.md`. A recipe names those that differ;
`--set KEY=VALUE` changes one for a command, `actrep check RECIPE` shows what a recipe sets.
"""


def settings_page() -> str:
    """The page, in Markdown: a table for each section, those of a recipe itself first."""
    lines = [_HEAD]
    for key, section in _sections(Recipe()):
        lines += [
            f"## {key or 'recipe'}",
            "",
            "| setting | default | what it is |",
            "|---|---|---|",
        ]
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                continue
            words = [word for word in _words(field.annotation) if word != value]
            others = f" Or {', '.join(map(_shown, words))}." if words else ""
            setting = f"{key}.{name}" if key else name
            about = _cell(f"{field.description or ''}{others}")
            lines.append(f"| `{setting}` | {_shown(value)} | {about} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections(section: Section, key: str = "") -> Iterator[tuple[str, Section]]:
    """A section and those below it, each with its dotted key."""
    yield key, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _sections(value, f"{key}.{name}" if key else name)


def _words(kind: Any) -> Iterator[object]:
    """What a setting of this kind may be, where that is a choice of words or numbers."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _words(member)


def _shown(value: object) -> str:
    """A value as YAML would have it."""
    plain = value.model_dump() if isinstance(value, Section) else value
    text = plain if isinstance(plain, str) and plain else json.dumps(plain, default=str)
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    write_lines(sys.argv[1], settings_page().splitlines())
