"""Counting in videos at hand: by a model or by the periodicity detector, one file or many."""
