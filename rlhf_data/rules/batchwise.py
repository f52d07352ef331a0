"""Rules over preferences whose weights depend on the other pairs of the optimizer step."""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import NotNegative, PairWeights, Positive, weighted_mean
from rlhf_data.rules.stable import softplus

if TYPE_CHECKING:
    from torch import Tensor

LEAST_BETA = 1e-3


def aot(logp_margin: "Tensor", ref_logp_margin: "Tensor", weight: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Align the distribution of margins: each pair is compared with the reference margin of its own rank.

        w₊ = w₋ = β σ(−β (logp_margin − q₀)),  q₀ = the reference margin with the same rank in the batch

    Ranks are quantiles by row weight. Where a pair spans several reference margins, or ties with another, its weight
    is the mean over what it spans.

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).
        ref_logp_margin: the same under the reference, (n,).
        weight: what each row counts for, (n,): its share of the quantiles.
        beta: inverse temperature, > 0.

    Returns:
        Weights in [0, β), each (n,).

    Source: Melnyk et al. 2024, alignment via optimal transport, arXiv:2406.05882, the paired form.

    >>> import torch
    >>> aot(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0]), torch.ones(2), beta=0.1).chosen
    tensor([0.0500, 0.0500])
    """
    share = transport(logp_margin, ref_logp_margin, weight)
    push = beta * (share * (-beta * _differences(logp_margin, ref_logp_margin)).sigmoid()).sum(1)
    return PairWeights(chosen=push, rejected=push)


def aot_loss(logp_margin: "Tensor", ref_logp_margin: "Tensor", weight: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−log σ(β(logp_margin − q₀)) of each pair, (n,)."""
    share = transport(logp_margin, ref_logp_margin, weight)
    return (share * softplus(-beta * _differences(logp_margin, ref_logp_margin))).sum(1)


def aot_unpaired(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", weight: "Tensor", *, beta: Positive = 0.1
) -> PairWeights:
    """Make chosen answers beat rejected ones as distributions: each is compared with its equal in rank, of any prompt.

        w₊ = β σ(−β (chosen_log_ratio − d)),  w₋ = β σ(−β (a − rejected_log_ratio))

    d is the rejected log-ratio of the chosen one's rank in the batch, a the chosen log-ratio of the rejected one's.
    Ranks are quantiles by row weight, as in `aot`.

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        weight: what each row counts for, (n,): its share of the quantiles.
        beta: inverse temperature, > 0.

    Returns:
        Weights in [0, β), each (n,).

    Source: Melnyk et al. 2024, arXiv:2406.05882, the unpaired form, here over the two columns of a paired table.

    >>> import torch
    >>> aot_unpaired(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0]), torch.ones(2), beta=0.1).rejected
    tensor([0.0500, 0.0500])
    """
    push = beta * (-beta * _differences(chosen_log_ratio, rejected_log_ratio)).sigmoid()
    return PairWeights(
        chosen=(transport(chosen_log_ratio, rejected_log_ratio, weight) * push).sum(1),
        rejected=(transport(rejected_log_ratio, chosen_log_ratio, weight) * push.T).sum(1),
    )


def aot_unpaired_loss(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", weight: "Tensor", *, beta: Positive = 0.1
) -> "Tensor":
    """−log σ(β(chosen_log_ratio − d)) of each pair, (n,)."""
    share = transport(chosen_log_ratio, rejected_log_ratio, weight)
    return (share * softplus(-beta * _differences(chosen_log_ratio, rejected_log_ratio))).sum(1)


def transport(values: "Tensor", others: "Tensor", weight: "Tensor") -> "Tensor":
    """What share of row i's quantiles under `values` falls on row j's under `others`, (n, n); each row sums to 1.

    Equal values share their quantiles, so the order of the batch does not matter; a row of weight 0 has none.

    >>> import torch
    >>> transport(torch.tensor([5.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    tensor([[0.0000, 1.0000],
            [0.3333, 0.6667]])
    """
    low, high = _quantiles(values, weight)
    other_low, other_high = _quantiles(others, weight)
    overlap = high[:, None].minimum(other_high) - low[:, None].maximum(other_low)
    share = overlap.clamp(min=0) / (other_high - other_low).clamp(min=1e-30) * weight
    return share / (high - low).clamp(min=1e-30)[:, None]


def _quantiles(values: "Tensor", weight: "Tensor") -> "tuple[Tensor, Tensor]":
    """The row weight below each value, and that up to and with it."""
    return (weight * (values < values[:, None])).sum(1), (weight * (values <= values[:, None])).sum(1)


def _differences(values: "Tensor", others: "Tensor") -> "Tensor":
    return values[:, None] - others


def beta_dpo(
    log_ratio_margin: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sensitivity: NotNegative = 0.6,
    threshold: float = 0.0,
) -> PairWeights:
    """DPO that trusts the reference more on batches whose pairs are further apart.

        w₊ = w₋ = β_B σ(−β_B · log_ratio_margin),  β_B = β (1 + α (mean over the batch of β · log_ratio_margin − M₀))

    β_B is a constant to autograd, and at least 0.001. The paper tracks M₀ as a running mean, which `beta_dpo_running`
    does, and draws pairs by their margin besides; here M₀ is given, and every pair is used.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        weight: what each row counts for, (n,), in that mean.
        beta: β at the threshold, > 0.
        sensitivity: α, ≥ 0; 0 is DPO.
        threshold: M₀, in units of β · nats.

    Returns:
        Weights in [0, β_B), each (n,).

    Source: Wu et al. 2024, β-DPO, arXiv:2407.08639, batch-level β; the floor is that of the authors' code.

    >>> import torch
    >>> beta_dpo(torch.tensor([10.0, -10.0]), torch.tensor([1.0, 0.0]), beta=0.1, sensitivity=0.5).chosen
    tensor([0.0274, 0.1226])
    """
    batch_beta = _batch_beta(log_ratio_margin, weight, beta, sensitivity, threshold)
    push = batch_beta * (-batch_beta * log_ratio_margin).sigmoid()
    return PairWeights(chosen=push, rejected=push)


def beta_dpo_loss(
    log_ratio_margin: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sensitivity: NotNegative = 0.6,
    threshold: float = 0.0,
) -> "Tensor":
    """−log σ(β_B·log_ratio_margin) of each pair, (n,)."""
    return softplus(-_batch_beta(log_ratio_margin, weight, beta, sensitivity, threshold) * log_ratio_margin)


def _batch_beta(margin: "Tensor", weight: "Tensor", beta: float, sensitivity: float, threshold: float) -> "Tensor":
    mean = weighted_mean(beta * margin, weight).detach()
    return (beta * (1 + sensitivity * (mean - threshold))).clamp(min=LEAST_BETA)


RULES = {"aot": aot, "aot_unpaired": aot_unpaired, "beta_dpo": beta_dpo}
LOSSES = {"aot": aot_loss, "aot_unpaired": aot_unpaired_loss, "beta_dpo": beta_dpo_loss}
