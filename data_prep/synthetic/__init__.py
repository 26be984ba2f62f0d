"""Synthetic repetition videos: H.264 files with exact cycle marks and motion tracks.

A clip is specified (`levels`, `timeline`, `clip`), drawn (`drawing`, `motions`, `scenery`,
`render`) and written with its data set (`dataset`). Rewards and models never read the tracks; they
describe motion, not counts.
"""
