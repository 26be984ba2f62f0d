"""Who writes the reasoning that SFT teaches: the annotations, a model behind an API, a detector."""
