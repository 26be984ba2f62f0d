"""The answer grammar: the one place that writes answers and reads them back.

An answer, in the dialect `think` (the dialect `thinking` only renames the first pair of tags)::

    <think>
    A person lowers and rises in front of a wall.
    One repetition: from standing, down, and back to standing
    rep1: 0.5-1.2s
    rep2: 1.2-2.0s
    Check: the two repetitions last about as long as each other
    Total: 2
    </think>
    <answer>2</answer>

Times are seconds from the start of the clip with one decimal. Lists of more than `JOIN_ABOVE`
repetitions are written in joined form: contiguous repetitions share their bounds, at most
`MAX_JOINED` to a line, and a line ends where a gap begins. `repI-J` is followed by the J-I+2
bounds of the repetitions I to J, so the line of a single repetition is the same form with two::

    rep1-3: 0.5-1.2-2.0-2.7s
    rep4: 3.1-3.8s

`layout` holds the names and limits that both directions keep to, `write` a well-formed answer and
its text, `read` what any text holds: `tags`, then the `reasoning` between them, with the
`integers` and the `problems` found.
"""
