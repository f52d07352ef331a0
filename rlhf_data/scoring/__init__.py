"""Reference log-probs, computed once and looked up ever after."""

from rlhf_data.scoring.score import score

__all__ = ["score"]
