"""Rules that imitate: their weights are never negative and are known before training."""

import math
from typing import TYPE_CHECKING, Literal

from rlhf_data.rules.batch import NotNegative, Positive, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["sum", "row_mean", "token_mean"]


def sft(n_tokens: "Tensor", weight: "Tensor", *, reduction: Reduction = "token_mean") -> "Tensor":
    """Imitate each completion.

        w = 1 (sum) · 1/n (row_mean) · 1/n̄ (token_mean), n̄ = Σ weight·n / Σ weight

    Divided by Σ weight, as `weighted_loss` does, these are the mean over rows of the summed log-prob, the mean over
    rows of the mean log-prob, and the mean over all tokens of the batch, where a token counts as its row does.

    Args:
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,); `token_mean` is a mean over the batch.
        reduction: what the loss is a mean of; `token_mean` is what language models are usually trained with.

    Returns:
        Weights in (0, 1], (n,).

    Source: maximum likelihood; HALOs, TRL and openchat each take another reduction as their only one.

    >>> import torch
    >>> sft(torch.tensor([1, 4]), torch.ones(2), reduction="row_mean")
    tensor([1.0000, 0.2500])
    >>> sft(torch.tensor([1, 4]), torch.ones(2), reduction="token_mean")
    tensor([0.4000, 0.4000])
    """
    tokens = n_tokens.to(weight.dtype)
    if reduction == "sum":
        return weight.new_ones(weight.shape)
    if reduction == "row_mean":
        return 1 / tokens
    return weight.new_ones(weight.shape) / weighted_mean(tokens, weight).clamp(min=1)


def sft_loss(
    policy_logps: "Tensor", n_tokens: "Tensor", weight: "Tensor", *, reduction: Reduction = "token_mean"
) -> "Tensor":
    """Negative log-likelihood of each row in nats, (n,), in the units that `reduction` says."""
    return -sft(n_tokens, weight, reduction=reduction) * policy_logps


def c_rlft(
    label: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    expert_weight: NotNegative = 1.0,
    other_weight: NotNegative = 0.1,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """Imitate good and other answers, the others with a smaller weight; nothing is pushed down.

        w = v (sum) · v/(n v̄) (row_mean) · v/mean(v n) (token_mean),  v = expert_weight or other_weight

    The means are over the batch, rows counted by weight. The seed's w₋ = −0.1 is of a pair, where −w₋ multiplies the
    gradient: of a single completion the weight is +0.1, so the other class is imitated too. The paper conditions the
    policy on the class: the prompt has to say which class the answer is of, or this is no more than weighted imitation.

    Args:
        label: bool, True where the completion is an expert's, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,), in those means.
        expert_weight: of completions labelled True, ≥ 0; the paper's e^(reward/β).
        other_weight: of the others, ≥ 0.
        reduction: as in `sft`, where a row counts v times; `sum` as printed, the means as in the authors' code.

    Returns:
        Weights ≥ 0, (n,).

    Source: Wang et al. 2023, OpenChat, arXiv:2309.11235.

    >>> import torch
    >>> c_rlft(torch.tensor([True, False]), torch.tensor([5, 5]), torch.ones(2), reduction="sum")
    tensor([1.0000, 0.1000], dtype=torch.float64)
    """
    good = label.double()
    value = expert_weight * good + other_weight * (1 - good)
    if reduction == "sum":
        return value
    counted = value if reduction == "row_mean" else value * n_tokens
    mean = weighted_mean(counted, weight).clamp(min=1e-30)
    return value / mean / n_tokens if reduction == "row_mean" else value / mean


def c_rlft_loss(
    policy_logps: "Tensor",
    label: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    expert_weight: NotNegative = 1.0,
    other_weight: NotNegative = 0.1,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """Negative log-likelihood of each row, (n,), weighted by class, in the units that `reduction` says."""
    values = {"expert_weight": expert_weight, "other_weight": other_weight, "reduction": reduction}
    return -c_rlft(label, n_tokens, weight, **values) * policy_logps


def rwr(reward: "Tensor", *, temperature: Positive = 1.0, cap: Positive = 20.0) -> "Tensor":
    """Imitate each completion as often as its reward is worth.

        w = min(e^(reward/T), cap)

    Args:
        reward: larger is better, (n,).
        temperature: T, > 0.
        cap: the largest weight, > 0.

    Returns:
        Weights in [0, cap], (n,).

    Source: Peters and Schaal 2007, reward-weighted regression; the cap as in Peng et al. 2019, arXiv:1910.00177.

    >>> import torch
    >>> rwr(torch.tensor([0.0, 1.0, 99.0]))
    tensor([ 1.0000,  2.7183, 20.0000])
    """
    return (reward / temperature).clamp(max=math.log(cap)).exp()


def rwr_loss(
    policy_logps: "Tensor", reward: "Tensor", *, temperature: Positive = 1.0, cap: Positive = 20.0
) -> "Tensor":
    """−min(e^(reward/T), cap) · log π(y) of each row, (n,)."""
    return -rwr(reward, temperature=temperature, cap=cap) * policy_logps


def awr(reward: "Tensor", weight: "Tensor", *, temperature: Positive = 1.0, cap: Positive = 20.0) -> "Tensor":
    """Imitate each completion as often as its reward is better than the batch's.

        w = min(e^((reward − r̄)/T), cap),  r̄ = Σ weight·reward / Σ weight

    Args:
        reward: larger is better, (n,).
        weight: what each row counts for, (n,), in the mean, which stands for the paper's value function.
        temperature: T, > 0.
        cap: the largest weight, > 0.

    Returns:
        Weights in [0, cap], (n,).

    Source: Peng et al. 2019, advantage-weighted regression, arXiv:1910.00177.

    >>> import torch
    >>> awr(torch.tensor([0.0, 2.0]), torch.ones(2))
    tensor([0.3679, 2.7183])
    """
    return rwr(reward - weighted_mean(reward, weight), temperature=temperature, cap=cap)


def awr_loss(
    policy_logps: "Tensor",
    reward: "Tensor",
    weight: "Tensor",
    *,
    temperature: Positive = 1.0,
    cap: Positive = 20.0,
) -> "Tensor":
    """−min(e^((reward − r̄)/T), cap) · log π(y) of each row, (n,)."""
    return -awr(reward, weight, temperature=temperature, cap=cap) * policy_logps


RULES = {"sft": sft, "c_rlft": c_rlft, "rwr": rwr, "awr": awr}
LOSSES = {"sft": sft_loss, "c_rlft": c_rlft_loss, "rwr": rwr_loss, "awr": awr_loss}
