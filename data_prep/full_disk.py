"""What an error says of a disk that takes no more, whichever library met it.

OSError                    its number
safetensors, tokenizers    "(os error 28)" at the end of the message, as Rust writes it
torch.save                 its writer did not get as far as it meant to; the number is lost
"""

import errno
import os
import re

_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_RUST = re.compile(r"\(os error (\d+)\)\s*$")
_OF_TORCH = re.compile(
    r"inline_container\.cc.*(unexpected pos|PytorchStreamWriter failed)", re.DOTALL
)


def met_by_worker(error: BaseException) -> BaseException:
    """What a Ray worker raised, without the traceback that Ray puts into the message."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def reason_not_written(error: BaseException) -> str | None:
    """Why a disk did not take what was written, and what to do; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _OF_RUST.search(str(error))):
        number = int(found[1])
    if number in _NOT_WRITTEN:
        reason = os.strerror(number)
        return f"{reason}: make room and run it again" if number in _NO_ROOM else reason
    if isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)):
        return "cannot be written whole: is there room on its disk?"
    return None
