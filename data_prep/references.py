"""What a row's labels say of the right answer, as rewards and scoring know it."""

from data_prep.images import LabelledImage
from data_prep.rows import Row
from rewards.reference import Reference, usable_cycles


def reference_of(clip: Row) -> Reference:
    """The labels of a clip, vetted: marks that disagree with the count are no evidence of either.

    Those of an image are its class and the other names of it.

    The one place where marks are left out. What belongs to a single answer (question, tokens) is
    filled in by whoever scores it.
    """
    if isinstance(clip, LabelledImage):
        return Reference(label=clip.label, aliases=clip.aliases)
    return Reference(
        count=clip.count,
        cycles=usable_cycles(clip.count, clip.cycles)[0],
        duration_s=clip.duration_s,
        label=clip.action if clip.action.strip() else None,
    )
