"""Rules as a user would write them."""

from __future__ import annotations

from torch import Tensor

from rlhf_data.rules import PairWeights


def twice_dpo(log_ratio_margin: Tensor, *, beta: float = 0.1) -> PairWeights:
    """DPO, twice as hard."""
    weight = 2 * beta * (-beta * log_ratio_margin).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def above_the_group(reward: Tensor, group: Tensor) -> Tensor:
    """How much better an answer is than the mean of its prompt's."""
    same = (group[:, None] == group).double()
    return reward - (same * reward).sum(1) / same.sum(1)


def silent(reward: Tensor):
    """Does not say what it returns."""
    return reward


def lost(advantage: Tensor) -> Tensor:
    """Names what no batch has."""
    return advantage


def demanding(reward: Tensor, *, scale: float) -> Tensor:
    """Has a hyperparameter without a default."""
    return reward * scale
