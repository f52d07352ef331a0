"""Rules over single completions: a negative weight pushes a completion down."""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import NotNegative, Positive, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor


def kto(
    log_ratio: "Tensor",
    mismatched_log_ratio: "Tensor",
    label: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """Push hardest on completions whose implicit reward is near the point where a reader stops caring.

        desirable:     w =  λ_D β σ'(β(log_ratio − z₀))
        undesirable:   w = −λ_U β σ'(β(z₀ − log_ratio))
        z₀ = max(0, mean over the batch of mismatched_log_ratio)

    Unlike DPO's, the weight dies on both sides of z₀: an example that is learned, or hopeless, is left alone.

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        mismatched_log_ratio: the same of another prompt's completion, (n,): its mean estimates KL(π‖π_ref).
        label: bool, True where the completion is desirable, (n,).
        weight: what each row counts for, (n,), in that mean too.
        beta: inverse temperature, > 0.
        desirable_weight: λ_D, ≥ 0; the paper wants λ_D·n_D / (λ_U·n_U) in [1, 4/3].
        undesirable_weight: λ_U, ≥ 0.

    Returns:
        Weights in [−λ_U β/4, λ_D β/4], (n,).

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 8; z₀ is not differentiated.

    >>> import torch
    >>> zeros = torch.zeros(2)
    >>> kto(zeros, zeros, torch.tensor([True, False]), torch.ones(2), beta=0.1)
    tensor([ 0.0250, -0.0250])
    """
    slope = _slope(beta * (log_ratio - kl_estimate(mismatched_log_ratio, weight)))
    return (desirable_weight * beta * slope).where(label, -undesirable_weight * beta * slope)


def kto_loss(
    log_ratio: "Tensor",
    mismatched_log_ratio: "Tensor",
    label: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """λ(1 − σ(±β(log_ratio − z₀))) of each row, (n,)."""
    gap = beta * (log_ratio - kl_estimate(mismatched_log_ratio, weight))
    return (desirable_weight * (-gap).sigmoid()).where(label, undesirable_weight * gap.sigmoid())


def kl_estimate(mismatched_log_ratio: "Tensor", weight: "Tensor") -> "Tensor":
    """KTO's reference point z₀ ≥ 0 in nats, (); a constant to autograd."""
    return weighted_mean(mismatched_log_ratio, weight).clamp(min=0).detach()


def _slope(x: "Tensor") -> "Tensor":
    # σ'(x), exact in both tails: 1 − σ(x) would round to 0 where σ(−x) is still a number.
    return x.sigmoid() * (-x).sigmoid()


RULES = {"kto": kto}
LOSSES = {"kto": kto_loss}
