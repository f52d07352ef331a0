"""Training with any rule from a snapshot, sampling from what was trained, and judging it."""

from rlhf_data.training.evaluate import compare
from rlhf_data.training.generate import generate
from rlhf_data.training.run import train

__all__ = ["compare", "generate", "train"]
