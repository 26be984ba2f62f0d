"""Strict YAML: no key twice, no NaN or infinity, no number beyond 64 bits, and one kind of line.

YAML 1.1 reads `on`, `off`, `yes` and `no` as booleans, and a setting whose values are words could
not be `off`. Here they are words, as in YAML 1.2, and whoever expects a boolean reads them as one.

YAML 1.1 ends a line, and with it a comment, at U+0085, U+2028 and U+2029 too, which no editor shows
and YAML 1.2 gave up. Here they are characters like any other: others stand in for them meanwhile.
"""

import math
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from data_prep.strict_json import is_text

_MAX_INTEGER = 2**63 - 1
_HIDDEN_ENDS = {0x85: 0x10FF85, 0x2028: 0x10FF28, 0x2029: 0x10FF29}  # to private characters
_SHOWN_ENDS = {stand_in: end for end, stand_in in _HIDDEN_ENDS.items()}


class Switch(str):
    """An unquoted `on`, `off`, `yes` or `no`: a word that may also be meant as a boolean."""

    __slots__ = ()

    @property
    def is_on(self) -> bool:
        """The boolean."""
        return self.lower() in ("on", "yes")


class YamlError(ValueError):
    """A text that is not the strict YAML that is read here.

    Attributes:
        line: Line of the text, from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message.translate(_SHOWN_ENDS))
        self.line = line


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        YamlError: saying what is wrong, and in which line.
    """
    text = text.translate(_HIDDEN_ENDS)
    loader: _StrictLoader | None = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = error.problem or error.context
        raise YamlError(f"not YAML ({told})", mark.line + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:  # a control character
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not YAML (holds U+{int(error.character):04X})", line) from error
    except RecursionError:
        line = loader.get_mark().line + 1 if loader is not None else 1
        raise YamlError("not YAML that can be read (nested too deeply)", line) from None
    finally:
        if loader is not None:
            loader.dispose()


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise YamlError(f"key {key.value!r} is given twice", _line_of(key))
                    seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[arg-type]

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except YamlError:
            raise
        except (ValueError, OverflowError) as error:  # a date that does not exist, a huge number
            raise YamlError(f"not YAML ({error})", _line_of(node)) from error
        if isinstance(value, Switch):
            return value
        if isinstance(value, str):
            if not is_text(value):
                raise YamlError(f"{value!r} holds half of a surrogate pair", _line_of(node))
            if "\0" in value:
                raise YamlError(f"{value!r} holds a NUL", _line_of(node))
            return value.translate(_SHOWN_ENDS)
        if isinstance(value, float) and not math.isfinite(value):
            raise YamlError(f"{_shown(node)}, expected a finite number", _line_of(node))
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise YamlError(f"{_shown(node)}, expected an integer within 64 bits", _line_of(node))
        return value


def _boolean_or_switch(loader: _StrictLoader, node: ScalarNode) -> bool | Switch:
    word = str(loader.construct_scalar(node))
    return word.lower() == "true" if word.lower() in ("true", "false") else Switch(word)


_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _boolean_or_switch)


def _line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: Node) -> str:
    text = str(node.value)
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"
