"""Cycle detection without a model: how often something is repeated in a clip, and when.

Frames become small registered pictures and a trajectory (`features`), every moment is compared with
every other (`similarity`), and the best chain of closed excursions gives the repetitions
(`cycles`); `detector` puts them together. It serves as a baseline of every evaluation, proposes
cycle marks where a set has none, and is a second opinion about the cycles that a model lists.
"""
