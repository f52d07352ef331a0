"""Rules that imitate: they need no reference and no opinion of the row."""

from typing import TYPE_CHECKING, Literal

from rlhf_data.rules.batch import weighted_mean

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


RULES = {"sft": sft}
LOSSES = {"sft": sft_loss}
