"""Converters of public repetition sets: each reads a set as it is distributed.

    from data_prep.converters.conversion import convert
    from data_prep.converters.repcount import repcount

    source = repcount([Path("annotation/train.csv")])
    summary = convert(source, videos="video", out="data/repcount")

`convert` writes the canonical JSONL of `data_prep.schema`; a set's own file knows its columns.
"""
