"""Rules over single labelled completions: a negative weight pushes a completion down."""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import NotNegative, Positive, weighted_mean
from rlhf_data.rules.stable import slope as sigmoid_slope

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
    slope = sigmoid_slope(beta * (log_ratio - kl_estimate(mismatched_log_ratio, weight)))
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


def apo_zero_unpaired(
    log_ratio: "Tensor",
    label: "Tensor",
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """KTO with the reference itself as the point where a reader stops caring.

        w = λ_D β σ'(β · log_ratio) (desirable) · −λ_U β σ'(β · log_ratio) (undesirable)

    Needs no mismatched completions, and depends on no other row.

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        label: bool, True where the completion is desirable, (n,).
        beta: inverse temperature, > 0.
        desirable_weight: λ_D, ≥ 0.
        undesirable_weight: λ_U, ≥ 0.

    Returns:
        Weights in [−λ_U β/4, λ_D β/4], (n,).

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7, one answer at a time.

    >>> import torch
    >>> apo_zero_unpaired(torch.zeros(2), torch.tensor([True, False]), beta=0.1)
    tensor([ 0.0250, -0.0250])
    """
    slope = sigmoid_slope(beta * log_ratio)
    return (desirable_weight * beta * slope).where(label, -undesirable_weight * beta * slope)


def apo_zero_unpaired_loss(
    log_ratio: "Tensor",
    label: "Tensor",
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> "Tensor":
    """λ σ(∓β · log_ratio) of each row, (n,)."""
    x = beta * log_ratio
    return (desirable_weight * (-x).sigmoid()).where(label, undesirable_weight * x.sigmoid())


RULES = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}
LOSSES = {"kto": kto_loss, "apo_zero_unpaired": apo_zero_unpaired_loss}
