"""Validating a file of clips: every row is read, and whatever is wrong with it is told.

`validate` owns the flow: `rows` one by one (a bad one is a finding, not the end) with the
`clip_checks` that need no video, then `comparisons` of rows with one another (ids, windows,
splits), then their videos (`video_facts`), in `decoder_processes` that may die. `findings` names
what can be wrong, `view` what a model would see of a clip, `report` what was found.
"""
