"""Text from data files, models and command lines, made safe to show."""


def printable(text: str, *, keeps_lines: bool = False) -> str:
    """Text that can neither move a cursor nor break the encoding: such characters are written out.

    Args:
        text: From anywhere.
        keeps_lines: Whether line breaks stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or (keeps_lines and c == "\n")
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
