"""Rules that remember: a number that every optimizer step moves a little, and that the next step starts from.

What is remembered stands in MEMORY beside the rule; the trainer carries it and keeps it in its checkpoints.
"""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import Memory, NotNegative, PairWeights, Positive, Share, weighted_mean
from rlhf_data.rules.batchwise import LEAST_BETA
from rlhf_data.rules.stable import softplus

if TYPE_CHECKING:
    from torch import Tensor


def bco(
    log_ratio: "Tensor",
    label: "Tensor",
    weight: "Tensor",
    delta: float,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """Train the implicit reward as a classifier of good and bad answers, around the mean reward so far.

        desirable:     w =  λ_D β σ(−(β · log_ratio − δ))
        undesirable:   w = −λ_U β σ(β · log_ratio − δ)
        δ = mean of β · log_ratio over all rows trained on so far, this step's included; a constant to autograd

    Unlike KTO's, the weight does not die where the policy is badly wrong.

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        label: bool, True where the completion is desirable, (n,).
        weight: what each row counts for, (n,), in that mean.
        delta: δ, remembered; 0 before the first step.
        beta: inverse temperature, > 0.
        desirable_weight: λ_D, ≥ 0.
        undesirable_weight: λ_U, ≥ 0. The paper's density ratio of undesirable rows, which corrects for prompts that
            only they have, is a column of weights to this rule: `weigh: {weight: {row: …}}`.

    Returns:
        Weights in (−λ_U β, λ_D β), (n,).

    Source: Jung et al. 2024, binary classifier optimization, arXiv:2404.04656, equation 9; the running mean as in TRL.

    >>> import torch
    >>> bco(torch.zeros(2), torch.tensor([True, False]), torch.ones(2), 0.0, beta=0.1)
    tensor([ 0.0500, -0.0500])
    """
    x = beta * log_ratio - delta
    return (desirable_weight * beta * (-x).sigmoid()).where(label, -undesirable_weight * beta * x.sigmoid())


def bco_loss(
    log_ratio: "Tensor",
    label: "Tensor",
    weight: "Tensor",
    delta: float,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """−λ log σ(±(β · log_ratio − δ)) of each row, (n,)."""
    x = beta * log_ratio - delta
    return (desirable_weight * softplus(-x)).where(label, undesirable_weight * softplus(x))


def bco_update(
    log_ratio: "Tensor", weight: "Tensor", delta: float, seen: float, *, beta: Positive = 0.1
) -> "dict[str, Tensor]":
    """The mean of β · log_ratio over the rows seen before and these, and what they all weigh.

    >>> import torch
    >>> bco_update(torch.tensor([40.0]), torch.ones(1), 1.0, 2.0, beta=0.1)
    {'delta': tensor(2.), 'seen': tensor(3.)}
    """
    now = seen + weight.sum()
    step = (weight * (beta * log_ratio - delta)).sum() / now.clamp(min=1e-30)
    return {"delta": delta + step, "seen": now}


def beta_dpo_running(
    log_ratio_margin: "Tensor",
    weight: "Tensor",
    threshold: float,
    *,
    beta: Positive = 0.1,
    sensitivity: NotNegative = 0.6,
    momentum: Share = 0.9,
) -> PairWeights:
    """β-DPO with its own running threshold: batches further apart than usual trust the reference more.

        w₊ = w₋ = β_B σ(−β_B · log_ratio_margin),  β_B = β (1 + α (mean over the batch of β · log_ratio_margin − M₀))
        M₀ ← m M₀ + (1 − m) · that mean, before it is used; 0 before the first step

    β_B is a constant to autograd, and at least 0.001, as in the authors' code. That code measures M in nats, without
    β, where the paper measures it in rewards, β · nats: its α is our α · β. It also draws pairs by their distance from
    M₀; here every pair is used.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        weight: what each row counts for, (n,), in that mean.
        threshold: M₀, remembered.
        beta: β at the threshold, > 0.
        sensitivity: α, ≥ 0; 0 is DPO.
        momentum: m, in [0, 1].

    Returns:
        Weights in [0, β_B), each (n,).

    Source: Wu et al. 2024, β-DPO, arXiv:2407.08639, batch-level β, and its authors' trainers.py.

    >>> import torch
    >>> beta_dpo_running(torch.tensor([10.0]), torch.ones(1), 1.0, beta=0.1).chosen
    tensor([0.0269])
    """
    batch_beta = _batch_beta(log_ratio_margin, weight, threshold, beta, sensitivity)
    push = batch_beta * (-batch_beta * log_ratio_margin).sigmoid()
    return PairWeights(chosen=push, rejected=push)


def beta_dpo_running_loss(
    log_ratio_margin: "Tensor",
    weight: "Tensor",
    threshold: float,
    *,
    beta: Positive = 0.1,
    sensitivity: NotNegative = 0.6,
    momentum: Share = 0.9,
) -> "Tensor":
    """−log σ(β_B·log_ratio_margin) of each pair, (n,)."""
    return softplus(-_batch_beta(log_ratio_margin, weight, threshold, beta, sensitivity) * log_ratio_margin)


def beta_dpo_update(
    log_ratio_margin: "Tensor",
    weight: "Tensor",
    threshold: float,
    *,
    beta: Positive = 0.1,
    momentum: Share = 0.9,
) -> "dict[str, Tensor]":
    """The exponential running mean M₀ after a step.

    >>> import torch
    >>> beta_dpo_update(torch.tensor([10.0]), torch.ones(1), 0.0, beta=0.1, momentum=0.75)
    {'threshold': tensor(0.2500)}
    """
    mean = weighted_mean(beta * log_ratio_margin, weight)
    return {"threshold": momentum * threshold + (1 - momentum) * mean}


def _batch_beta(margin: "Tensor", weight: "Tensor", threshold: float, beta: float, sensitivity: float) -> "Tensor":
    mean = weighted_mean(beta * margin, weight).detach()
    return (beta * (1 + sensitivity * (mean - threshold))).clamp(min=LEAST_BETA)


RULES = {"bco": bco, "beta_dpo_running": beta_dpo_running}
LOSSES = {"bco": bco_loss, "beta_dpo_running": beta_dpo_running_loss}
MEMORY = {
    "bco": Memory({"delta": 0.0, "seen": 0.0}, bco_update),
    "beta_dpo_running": Memory({"threshold": 0.0}, beta_dpo_update),
}
