"""Reinforcement learning of Qwen-VL on videos of repeated actions, with separate Ray actors.

This module stays import-light: it owns the version and nothing else, because every Python process
of the environment imports it at start-up (see ``actrep_ray.torchvision_hook``).
"""

__version__ = "0.1.0"
