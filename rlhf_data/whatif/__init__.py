"""Weights before training: what each rule makes of a scored snapshot, row by row, and what follows from it."""

from rlhf_data.whatif.ask import Asked, parse, refused
from rlhf_data.whatif.weigh import Weighed, weigh

__all__ = ["Asked", "Weighed", "parse", "refused", "weigh"]
