"""Rules over preferences that look at the log-ratio margin only: both completions get the same weight."""

import math
from typing import TYPE_CHECKING

from rlhf_data.rules.batch import BelowHalf, InsideHalf, PairWeights, Positive
from rlhf_data.rules.stable import bounded_exp, slope, softplus

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
    return preference * softplus(-x) + (1 - preference) * softplus(x)


def cdpo(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> PairWeights:
    """DPO for readers who err in a known share ε of all pairs.

        w₊ = w₋ = β (σ(−β · log_ratio_margin) − ε)

    Turns back past margin logit(1 − ε)/β: a pair that is ranked too surely is pulled together again.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        beta: inverse temperature, > 0.
        label_smoothing: ε, share of wrong labels, in [0, 0.5); 0 is DPO.

    Returns:
        Weights in (−εβ, (1 − ε)β), each (n,).

    Source: Mitchell 2023, "A note on DPO with noisy preferences".

    >>> import torch
    >>> cdpo(torch.tensor([0.0]), beta=0.1, label_smoothing=0.2).chosen
    tensor([0.0300])
    """
    x = beta * log_ratio_margin
    weight = beta * ((1 - label_smoothing) * (-x).sigmoid() - label_smoothing * x.sigmoid())
    return PairWeights(chosen=weight, rejected=weight)


def cdpo_loss(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> "Tensor":
    """−(1 − ε) log σ(β·margin) − ε log σ(−β·margin) of each pair, (n,)."""
    x = beta * log_ratio_margin
    return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)


def robust_dpo(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> PairWeights:
    """DPO whose expectation over labels flipped with probability ε is that of DPO on clean labels.

        w₊ = w₋ = β ((1 − ε) σ(−β · log_ratio_margin) + ε σ(β · log_ratio_margin)) / (1 − 2ε)

    Never negative, unlike cDPO: it goes on pushing at rate εβ/(1 − 2ε) however sure the policy is.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        beta: inverse temperature, > 0.
        label_smoothing: ε, share of flipped labels, in [0, 0.5); 0 is DPO.

    Returns:
        Weights in (εβ/(1 − 2ε), (1 − ε)β/(1 − 2ε)), each (n,).

    Source: Chowdhury et al. 2024, arXiv:2403.00409.

    >>> import torch
    >>> robust_dpo(torch.tensor([0.0]), beta=0.1, label_smoothing=0.25).chosen
    tensor([0.1000])
    """
    x = beta * log_ratio_margin
    mixed = (1 - label_smoothing) * (-x).sigmoid() + label_smoothing * x.sigmoid()
    weight = beta * mixed / (1 - 2 * label_smoothing)
    return PairWeights(chosen=weight, rejected=weight)


def robust_dpo_loss(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> "Tensor":
    """(−(1 − ε) log σ(β·margin) + ε log σ(−β·margin)) / (1 − 2ε) of each pair, (n,)."""
    x = beta * log_ratio_margin
    return ((1 - label_smoothing) * softplus(-x) - label_smoothing * softplus(x)) / (1 - 2 * label_smoothing)


def hinge(log_ratio_margin: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Push every pair alike until its margin reaches 1/β, then let go.

        w₊ = w₋ = β · 1[β · log_ratio_margin < 1]

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        beta: inverse of the margin that is enough, > 0.

    Returns:
        Weights that are β or 0, each (n,).

    Source: Liu et al. 2023, statistical rejection sampling (RSO), arXiv:2309.06657, the hinge-norm loss.

    >>> import torch
    >>> hinge(torch.tensor([9.0, 11.0]), beta=0.1).chosen
    tensor([0.1000, 0.0000])
    """
    weight = (beta * log_ratio_margin < 1).to(log_ratio_margin.dtype) * beta
    return PairWeights(chosen=weight, rejected=weight)


def hinge_loss(log_ratio_margin: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """max(0, 1 − β·margin) of each pair, (n,)."""
    return (1 - beta * log_ratio_margin).clamp(min=0)


def ipo(log_ratio_margin: "Tensor", *, tau: Positive = 0.1) -> PairWeights:
    """Regress the margin on 1/(2τ): without the sigmoid, certain preferences cannot push for ever.

        w₊ = w₋ = 2 (1/(2τ) − log_ratio_margin)

    The form as printed, over summed log-probs; `ipo_avg` is the one over mean log-probs that some libraries train.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        tau: strength of the pull towards the reference, > 0.

    Returns:
        Weights of either sign, each (n,); 1/τ where policy = reference.

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17.

    >>> import torch
    >>> ipo(torch.tensor([0.0, 5.0, 6.0]), tau=0.1).chosen
    tensor([10.,  0., -2.])
    """
    weight = 2 * (1 / (2 * tau) - log_ratio_margin)
    return PairWeights(chosen=weight, rejected=weight)


def ipo_loss(log_ratio_margin: "Tensor", *, tau: Positive = 0.1) -> "Tensor":
    """(margin − 1/(2τ))² of each pair, (n,)."""
    return (log_ratio_margin - 1 / (2 * tau)) ** 2


def exo(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: InsideHalf = 0.001) -> PairWeights:
    """DPO with the divergence turned round: the policy's own preference is fitted into the reader's.

        w₊ = w₋ = β σ'(β · log_ratio_margin) (logit(1 − ε) − β · log_ratio_margin)

    Seeks one mode: a pair that is ranked hopelessly wrong is left alone, as σ' dies there.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        beta: inverse temperature, > 0.
        label_smoothing: ε, the reader's doubt, in (0, 0.5); margins settle at logit(1 − ε)/β.

    Returns:
        Weights of either sign, each (n,).

    Source: Ji et al. 2024, arXiv:2402.00856, equation 16, for two answers.

    >>> import torch
    >>> exo(torch.tensor([0.0]), beta=0.1, label_smoothing=0.25).chosen
    tensor([0.0275])
    """
    x = beta * log_ratio_margin
    weight = beta * slope(x) * (_logit(1 - label_smoothing) - x)
    return PairWeights(chosen=weight, rejected=weight)


def exo_loss(log_ratio_margin: "Tensor", *, beta: Positive = 0.1, label_smoothing: InsideHalf = 0.001) -> "Tensor":
    """KL(Bernoulli(σ(β·margin)) ‖ Bernoulli(1 − ε)) of each pair, (n,)."""
    x = beta * log_ratio_margin
    right, wrong = math.log(1 - label_smoothing), math.log(label_smoothing)
    return x.sigmoid() * (-softplus(-x) - right) + (-x).sigmoid() * (-softplus(x) - wrong)


def discopop(log_ratio_margin: "Tensor", *, beta: Positive = 0.05, tau: Positive = 0.05) -> PairWeights:
    """A loss that a language model wrote: logistic where the pair is ranked wrongly, exponential where rightly.

        w₊ = w₋ = β ((1 − m) σ(−u) + m e⁻ᵘ − m(1 − m)/τ · (e⁻ᵘ + log σ(u))),  u = β · log_ratio_margin, m = σ(u/τ)

    Neither monotone nor always positive: just above u = 0 it can pull a pair together.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        beta: inverse temperature, > 0.
        tau: width of the change from one loss to the other, > 0. Above 1 the weight grows as e^(−u(1 − 1/τ)) on
            wrongly ranked pairs, and stops growing at e⁶⁰.

    Returns:
        Weights of either sign, each (n,).

    Source: Lu et al. 2024, arXiv:2406.08414, equation 5 (log-ratio modulated loss).

    >>> import torch
    >>> discopop(torch.tensor([0.0]), beta=0.05, tau=0.05).chosen  # 0.05 (¾ − 5 (1 − ln 2))
    tensor([-0.0392])
    """
    u = beta * log_ratio_margin
    exponential = _modulated_exp(u, tau)  # m e⁻ᵘ
    m, rest = (u / tau).sigmoid(), (-u / tau).sigmoid()
    bend = (exponential * rest - m * rest * softplus(-u)) / tau
    weight = beta * (rest * (-u).sigmoid() + exponential - bend)
    return PairWeights(chosen=weight, rejected=weight)


def discopop_loss(log_ratio_margin: "Tensor", *, beta: Positive = 0.05, tau: Positive = 0.05) -> "Tensor":
    """−(1 − m) log σ(u) + m e⁻ᵘ of each pair, (n,), m = σ(u/τ)."""
    u = beta * log_ratio_margin
    return (-u / tau).sigmoid() * softplus(-u) + _modulated_exp(u, tau)


def _modulated_exp(u: "Tensor", tau: float) -> "Tensor":
    # In logs: e⁻ᵘ alone overflows where σ(u/τ) · e⁻ᵘ is next to nothing.
    return bounded_exp(-softplus(-u / tau) - u)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


RULES = {
    "dpo": dpo,
    "cdpo": cdpo,
    "robust_dpo": robust_dpo,
    "hinge": hinge,
    "ipo": ipo,
    "exo": exo,
    "discopop": discopop,
}
LOSSES = {
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "robust_dpo": robust_dpo_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "exo": exo_loss,
    "discopop": discopop_loss,
}
