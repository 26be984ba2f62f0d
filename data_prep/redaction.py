"""Taking a secret out of text, also where it is told in part or masked."""

import re

_PIECE = 8  # characters of a secret in a row that say too much of it
_SHOWN = 3  # beside a mask, as in sk-abc***xyz
_WORD = re.compile(r"[^\s\"'`<>(){}\[\],;:=]+")
_MASK = re.compile(r"\*+|\.{3,}|…+|•+|x{4,}|X{4,}")
HIDDEN = "***"


class Redaction:
    """Takes one secret out of text.

    Args:
        secret: Empty where there is none.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        size = min(_PIECE, len(secret))
        self._size = size
        self._pieces = {secret[i : i + size] for i in range(len(secret) - size + 1)} if size else ()

    def apply(self, text: str) -> str:
        """The text, each piece of the secret of 8 characters or more replaced by `***`.

        What a server masked itself (`sk-abc***xyz`) is replaced as a whole, if what it shows of it
        begins or ends as the secret does.
        """
        if not self._secret:
            return text
        return _WORD.sub(self._masked, self._without_pieces(text))

    def _without_pieces(self, text: str) -> str:
        kept, start = [], 0  # the text from `start` on has not been copied
        at = 0
        while at <= len(text) - self._size:
            if text[at : at + self._size] not in self._pieces:
                at += 1
                continue
            kept.append(text[start:at])
            end = at + self._size
            while text[end - self._size + 1 : end + 1] in self._pieces and end < len(text):
                end += 1
            kept.append(HIDDEN)
            start = at = end
        return "".join([*kept, text[start:]])

    def _masked(self, found: re.Match[str]) -> str:
        front, *others = _MASK.split(found[0])
        if not others:
            return found[0]
        back = others[-1]
        begins = len(front) >= _SHOWN and self._secret.startswith(front)
        ends = len(back) >= _SHOWN and self._secret.endswith(back)
        return HIDDEN if begins or ends else found[0]
