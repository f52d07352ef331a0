"""Rules over preferences: one weight for the chosen completion, one for the rejected."""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import PairWeights, Positive

if TYPE_CHECKING:
    from torch import Tensor


def dpo(log_ratio_margin: "Tensor", preference: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Push until the implicit reward ranks a pair as surely as its readers did.

        w₊ = w₋ = β (preference − σ(β · log_ratio_margin))

    With preference 1 this is β σ(−β · log_ratio_margin): hardest on the pairs that the policy ranks wrongly, and β/2
    on every pair where policy = reference. A softer preference p stops, and turns back, at margin logit(p)/β.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        preference: probability that chosen is the better one, in [0.5, 1]; 0.5 is a tie, (n,).
        beta: inverse temperature, > 0; the paper uses 0.1 to 0.5.

    Returns:
        Weights in (−β/2, β), each (n,).

    Source: Rafailov et al. 2023, arXiv:2305.18290, the gradient in section 4; soft labels as in Mitchell 2023,
    "A note on DPO with noisy preferences" (cDPO), with preference = 1 − ε.

    >>> import torch
    >>> dpo(torch.zeros(2), torch.tensor([1.0, 0.5]), beta=0.1).chosen
    tensor([0.0500, 0.0000])
    """
    # p − σ(x) written without cancellation: at p = 1 the tail σ(−x) keeps its digits.
    x = beta * log_ratio_margin
    weight = beta * (preference * (-x).sigmoid() - (1 - preference) * x.sigmoid())
    return PairWeights(chosen=weight, rejected=weight)


def dpo_loss(log_ratio_margin: "Tensor", preference: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−p log σ(β·margin) − (1 − p) log σ(−β·margin) of each pair, (n,); ln 2 where policy = reference."""
    x = beta * log_ratio_margin
    return preference * _softplus(-x) + (1 - preference) * _softplus(x)


def _softplus(x: "Tensor") -> "Tensor":
    return x.clamp(min=0) + (-x.abs()).exp().log1p()  # log(1 + eˣ), finite for every x


RULES = {"dpo": dpo}
LOSSES = {"dpo": dpo_loss}
