"""A page of this machine: drop a video, see how it was counted.

    browser ─► guard ─► page (Gradio) ─► counters ─► `actrep_ray.counting`, as `actrep count`
                                             └─► shown: what was counted, as HTML

Gradio is imported by `page` alone, and only when the page is made: all else can be used without it.
"""
