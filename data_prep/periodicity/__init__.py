"""Cycle detection without a model: how often something is repeated in a clip, and when.

Frames become small registered pictures and a trajectory (`features`), every moment is compared with
every other (`similarity`), and the best chain of closed excursions gives the repetitions
(`cycles`); `detector` puts them together. It serves as a baseline of every evaluation, proposes
cycle marks where a set has none, and is a second opinion about the cycles that a model lists.
"""

from data_prep.periodicity.detector import (
    Detection,
    Proposal,
    agreement,
    detect_cycles,
    detect_in,
    propose_cycles,
)
from data_prep.periodicity.features import Features, features_of_frames, features_of_signals

__all__ = [
    "Detection",
    "Features",
    "Proposal",
    "agreement",
    "detect_cycles",
    "detect_in",
    "features_of_frames",
    "features_of_signals",
    "propose_cycles",
]
