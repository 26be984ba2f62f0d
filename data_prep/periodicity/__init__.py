"""Cycle detection without a model: how often something is repeated in a clip, and when.

A file is split into shots (`shots`, `fades`). Frames become small registered pictures and a
trajectory (`features`, `camera`), every moment is compared with every other (`similarity`), and the
best chain of closed excursions gives the repetitions (`cycles`, `lattice`); `detector` puts them
together and `verdict` says whether the number is to be believed. It serves as a baseline of every
evaluation, proposes cycle marks where a set has none, and is a second opinion about the cycles that
a model lists.
"""
