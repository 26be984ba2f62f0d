"""Our rewards by name, and the loading of a user's own by dotted name."""

import difflib
import importlib
from types import MappingProxyType
from typing import Final

from rewards import format as form
from rewards.contract import Reward, check_signature
from rewards.count import VARIANTS
from rewards.count_parts import count_part
from rewards.cycles import consistency, cycle_f1, cycle_tiou
from rewards.recognition import brevity, recognition

REWARDS: Final = MappingProxyType[str, Reward](
    {
        **{name: count_part(name, "worked" if name == "obo" else "answer") for name in VARIANTS},
        "cycles": cycle_f1,
        "cycle_tiou": cycle_tiou,
        "consistency": consistency,
        "format": form.graded_format,
        "strict_format": form.strict_format,
        "think_answer": form.think_answer,
        "recognition": recognition,
        "brevity": brevity,
        "overlong": form.overlong,
        "repetition": form.repetition,
        "copy": form.copy,
    }
)
PENALTIES: Final = frozenset({"overlong", "repetition", "copy"})


def load_reward(name: str) -> Reward:
    """The function behind a name of `REWARDS` or a dotted name `package.module:function`.

    Raises:
        ValueError: if there is no such reward, module or function, or if it cannot be called with
            a response and a reference.
    """
    if ":" not in name:
        if name in REWARDS:
            return REWARDS[name]
        nearest = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(REWARDS)}"
        raise ValueError(f"reward {name!r} is not known ({hint}, or give package.module:function)")
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ValueError(f"reward {name!r}: cannot import {module_name!r} ({told})") from error
    reward = getattr(module, function_name, None)
    if not callable(reward):
        raise ValueError(f"reward {name!r}: {module_name!r} has no function {function_name!r}")
    check_signature(name, reward, {})
    checked: Reward = reward
    return checked
