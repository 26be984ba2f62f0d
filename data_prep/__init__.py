"""Turn annotations and videos into the canonical JSONL that training and evaluation read."""
