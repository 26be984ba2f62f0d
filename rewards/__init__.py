"""Answer grammar and rewards for counting repeated actions; needs the standard library and numpy.

Start at `rewards.grammar` (what an answer looks like), `rewards.compose` (how it is scored) and
`rewards.compute_score` (the same behind verl's signature). Nothing here imports another package
of this project, so a reward worker or another trainer can use it alone.
"""
