"""The Qwen-VL families: inputs, position ids, loading, and the small checkpoint for laptops."""
