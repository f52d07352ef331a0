"""Rules that weigh each token by itself: what a token gets depends on its own log-prob, or on where it stands.

Tokens lie flat, all completions end to end; `token_row` says which row each belongs to. What is one number a row is
looked up there.
"""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import NotNegative, PairTokenWeights, Positive, Share, TokenWeights, per_row
from rlhf_data.rules.stable import LEAST_NATS, bounded_exp, log1mexp, softplus
from rlhf_data.rules.supervised import Reduction, sft

if TYPE_CHECKING:
    from torch import Tensor


def unlikelihood(
    policy_chosen_token_logps: "Tensor", policy_rejected_token_logps: "Tensor", *, coefficient: NotNegative = 1.0
) -> PairTokenWeights:
    """Imitate the chosen answer; make each token of the rejected one unlikely, the likelier the harder.

        w₊ = 1,  w₋ = α p/(1 − p),  a token's p = e^(log-prob)

    Args:
        policy_chosen_token_logps: log p of each token of the chosen completions, (chosen tokens,).
        policy_rejected_token_logps: the same of the rejected ones, < 0, (rejected tokens,); above −1e-7 it counts as
            −1e-7.
        coefficient: α, ≥ 0.

    Returns:
        w₊ is 1; w₋ in [0, 1e7 α]: it has a pole where a rejected token is certain.

    Source: Welleck et al. 2019, unlikelihood training, arXiv:1908.04319, equations 2 and 5:
    −log π(y₊) − α Σ log(1 − p) over the rejected tokens.

    >>> import torch
    >>> unlikelihood(torch.tensor([-1.0]), torch.tensor([0.5, 0.2]).log())
    PairTokenWeights(chosen=tensor([1.]), rejected=tensor([1.0000, 0.2500]))
    """
    return PairTokenWeights(
        chosen=policy_chosen_token_logps.new_ones(policy_chosen_token_logps.shape),
        rejected=coefficient * _odds(policy_rejected_token_logps),
    )


def unlikelihood_loss(
    policy_chosen_logps: "Tensor",
    policy_rejected_token_logps: "Tensor",
    rejected_token_row: "Tensor",
    *,
    coefficient: NotNegative = 1.0,
) -> "Tensor":
    """−log π(y₊) − α Σ log(1 − p) of each pair, (n,)."""
    missed = per_row(_log_complement(policy_rejected_token_logps), rejected_token_row, policy_chosen_logps)
    return -policy_chosen_logps - coefficient * missed


def unlikelihood_unpaired(
    policy_token_logps: "Tensor", token_row: "Tensor", label: "Tensor", *, coefficient: NotNegative = 1.0
) -> TokenWeights:
    """Imitate desirable answers; make each token of the others unlikely, the likelier the harder.

        desirable: w = 1    undesirable: w = −α p/(1 − p),  a token's p = e^(log-prob)

    Args:
        policy_token_logps: log p of each token, < 0, (tokens,); above −1e-7 it counts as −1e-7 in w.
        token_row: the row of each token, (tokens,).
        label: bool, True where the completion is desirable, (n,).
        coefficient: α, ≥ 0.

    Returns:
        Weights in [−1e7 α, 1], (tokens,).

    Source: Welleck et al. 2019, unlikelihood training, arXiv:1908.04319, equations 2 and 5.

    >>> import torch
    >>> unlikelihood_unpaired(torch.tensor([0.5, 0.5]).log(), torch.tensor([0, 1]), torch.tensor([True, False])).tokens
    tensor([ 1., -1.])
    """
    push = -coefficient * _odds(policy_token_logps)
    return TokenWeights(push.new_ones(push.shape).where(label[token_row], push))


def unlikelihood_unpaired_loss(
    policy_logps: "Tensor",
    policy_token_logps: "Tensor",
    token_row: "Tensor",
    label: "Tensor",
    *,
    coefficient: NotNegative = 1.0,
) -> "Tensor":
    """−log π(y) of a desirable row, −α Σ log(1 − p) of another, (n,)."""
    missed = per_row(_log_complement(policy_token_logps), token_row, policy_logps)
    return (-policy_logps).where(label, -coefficient * missed)


def _odds(logps: "Tensor") -> "Tensor":
    below = logps.clamp(max=-LEAST_NATS)
    return below.exp() / -below.expm1()


def _log_complement(logps: "Tensor") -> "Tensor":
    return log1mexp(logps.clamp(max=-LEAST_NATS))


def dft(
    policy_token_logps: "Tensor",
    token_row: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    reduction: Reduction = "token_mean",
) -> TokenWeights:
    """Imitate, but each token only as much as the policy already believes it.

        w = p · sft,  a token's p = e^(log-prob), a constant to autograd

    Imitation divides by p in its gradient's scale; this takes that back, so rare tokens do not rule. sft is the weight
    that the rule `sft` gives the row under the same reduction.

    Args:
        policy_token_logps: log p of each token, (tokens,).
        token_row: the row of each token, (tokens,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        reduction: as in `sft`.

    Returns:
        Weights in [0, 1], (tokens,).

    Source: Wu et al. 2025, dynamic fine-tuning, arXiv:2508.05629, equation 9; with p(y) of the whole answer in place
    of p nothing would be learned, as p(y) is nearly 0.

    >>> import torch
    >>> dft(torch.tensor([0.5, 0.25]).log(), torch.tensor([0, 0]), torch.tensor([2]), torch.ones(1)).tokens
    tensor([0.2500, 0.1250])
    """
    return TokenWeights(policy_token_logps.exp() * sft(n_tokens, weight, reduction=reduction)[token_row])


def dft_loss(
    policy_token_logps: "Tensor",
    token_row: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """−Σ p log p of each row, (n,), p before log a constant, in the units that `reduction` says."""
    pushed = per_row(policy_token_logps.exp() * policy_token_logps, token_row, weight)
    return -sft(n_tokens, weight, reduction=reduction) * pushed


def ppo_token(
    old_token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    reduction: Reduction = "token_mean",
) -> TokenWeights:
    """PPO as it is trained: ratios and clipping token by token, against the policy that wrote the answer.

        w = ρ · reward · sft  where reward > 0 and ρ < 1 + ε_high, or reward < 0 and ρ > 1 − ε_low, else 0
        a token's ρ = e^old_token_log_ratio

    sft is the weight that the rule `sft` gives the row under the same reduction.

    Args:
        old_token_log_ratio: log p/p_old of each token, (tokens,); above 60 it counts as 60.
        token_row: the row of each token, (tokens,).
        reward: the advantage of each completion, the same for all its tokens, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.
        reduction: as in `sft`.

    Returns:
        Weights of either sign, (tokens,).

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7, with each token as an action.

    >>> import torch
    >>> row, ratio = torch.tensor([0, 0]), torch.tensor([1.0, 1.5]).log()
    >>> ppo_token(ratio, row, torch.ones(1), torch.tensor([2]), torch.ones(1), reduction="sum").tokens
    tensor([1., 0.])
    """
    ratio, advantage = bounded_exp(old_token_log_ratio), reward[token_row]
    inside = ((advantage > 0) & (ratio < 1 + clip_high)) | ((advantage < 0) & (ratio > 1 - clip_low))
    factor = sft(n_tokens, weight, reduction=reduction)[token_row]
    return TokenWeights(inside.to(ratio.dtype) * ratio * advantage * factor)


def ppo_token_loss(
    old_token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """−Σ min(ρ · reward, clip(ρ) · reward) over each row's tokens, (n,), in the units that `reduction` says."""
    ratio, advantage = bounded_exp(old_token_log_ratio), reward[token_row]
    surrogate = (ratio * advantage).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    return -sft(n_tokens, weight, reduction=reduction) * per_row(surrogate, token_row, weight)


def apa_token(
    old_token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    temperature: Positive = 1.0,
    reduction: Reduction = "token_mean",
) -> TokenWeights:
    """APA as it is trained: each token's log-ratio to the policy that wrote it is regressed on the advantage.

        w = 2 (reward/λ − old_token_log_ratio) · sft

    sft is the weight that the rule `sft` gives the row under the same reduction.

    Args:
        old_token_log_ratio: log p/p_old of each token, (tokens,).
        token_row: the row of each token, (tokens,).
        reward: the advantage of each completion, the same for all its tokens, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        temperature: λ, > 0: how much reward a nat of log-ratio costs; the authors' code multiplies by 1/λ
            (`adv_coeff_sq`).
        reduction: as in `sft`; the authors divide by the number of tokens of the batch.

    Returns:
        Weights of either sign, (tokens,).

    Source: Zhu et al. 2023, advantage-induced policy alignment, arXiv:2306.02231, the squared loss, token by token.

    >>> import torch
    >>> row, zeros, one = torch.tensor([0, 0]), torch.zeros(2), torch.ones(1)
    >>> apa_token(zeros, row, one, torch.tensor([2]), one, temperature=0.5).tokens
    tensor([2., 2.])
    """
    push = 2 * (reward[token_row] / temperature - old_token_log_ratio)
    return TokenWeights(push * sft(n_tokens, weight, reduction=reduction)[token_row])


def apa_token_loss(
    old_token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    temperature: Positive = 1.0,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """Σ (old_token_log_ratio − reward/λ)² over each row's tokens, (n,), in the units that `reduction` says."""
    squares = (old_token_log_ratio - reward[token_row] / temperature) ** 2
    return sft(n_tokens, weight, reduction=reduction) * per_row(squares, token_row, weight)


def ld_dpo(
    chosen_token_log_ratio: "Tensor",
    rejected_token_log_ratio: "Tensor",
    chosen_token_row: "Tensor",
    rejected_token_row: "Tensor",
    chosen_token_position: "Tensor",
    rejected_token_position: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    beta: Positive = 0.1,
    alpha: Share = 0.5,
) -> PairTokenWeights:
    """DPO in which the tokens that only the longer answer has count for less.

        w = β σ(−β M) m,  M = Σ m₊ · chosen_token_log_ratio − Σ m₋ · rejected_token_log_ratio
        m = 1 for a token among the first min(n₊, n₋) of its completion, α for the others

    The same mask is on the policy and on the reference, as in TRL; LLaMA-Factory masks the policy only, which adds
    the reference's tail to every margin.

    Args:
        chosen_token_log_ratio: log p/p_ref of each token of the chosen completions, (chosen tokens,).
        rejected_token_log_ratio: the same of the rejected ones, (rejected tokens,).
        chosen_token_row: the row of each chosen token, (chosen tokens,).
        rejected_token_row: the row of each rejected token, (rejected tokens,).
        chosen_token_position: how many tokens of the completion stand before it, (chosen tokens,).
        rejected_token_position: the same of the rejected ones, (rejected tokens,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        beta: inverse temperature, > 0.
        alpha: α, in [0, 1]: what a token of the tail counts for; 1 is DPO.

    Returns:
        Weights in [0, β), (tokens of each side,).

    Source: Liu et al. 2024, length-desensitized DPO, arXiv:2409.06411, equation 9.

    >>> import torch
    >>> zeros, rows, at = torch.zeros(2), torch.tensor([0, 0]), torch.arange(2)
    >>> two, one = torch.tensor([2]), torch.tensor([1])
    >>> ld_dpo(zeros, zeros[:1], rows, rows[:1], at, at[:1], two, one, beta=0.1, alpha=0.5)
    PairTokenWeights(chosen=tensor([0.0500, 0.0250]), rejected=tensor([0.0500]))
    """
    masks, margin = _ld_margin(
        (chosen_token_log_ratio, rejected_token_log_ratio),
        (chosen_token_row, rejected_token_row),
        (chosen_token_position, rejected_token_position),
        chosen_n_tokens.minimum(rejected_n_tokens),
        alpha,
    )
    push = beta * (-beta * margin).sigmoid()
    return PairTokenWeights(
        chosen=push[chosen_token_row] * masks[0],
        rejected=push[rejected_token_row] * masks[1],
    )


def ld_dpo_loss(
    chosen_token_log_ratio: "Tensor",
    rejected_token_log_ratio: "Tensor",
    chosen_token_row: "Tensor",
    rejected_token_row: "Tensor",
    chosen_token_position: "Tensor",
    rejected_token_position: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    beta: Positive = 0.1,
    alpha: Share = 0.5,
) -> "Tensor":
    """−log σ(β M) of each pair, (n,)."""
    _, margin = _ld_margin(
        (chosen_token_log_ratio, rejected_token_log_ratio),
        (chosen_token_row, rejected_token_row),
        (chosen_token_position, rejected_token_position),
        chosen_n_tokens.minimum(rejected_n_tokens),
        alpha,
    )
    return softplus(-beta * margin)


_Sides = tuple["Tensor", "Tensor"]


def _ld_margin(
    ratios: _Sides, rows: _Sides, places: _Sides, shared: "Tensor", alpha: float
) -> "tuple[list[Tensor], Tensor]":
    """What each token of chosen and of rejected counts for, and the margin of each pair, (n,)."""
    masks, sums = [], []
    for ratio, row, place in zip(ratios, rows, places, strict=True):
        common = (place < shared[row]).to(ratio.dtype)
        masks.append(common + alpha * (1 - common))
        sums.append(ratio.new_zeros(shared.shape).index_add(0, row, masks[-1] * ratio))
    return masks, sums[0] - sums[1]


RULES = {
    "unlikelihood": unlikelihood,
    "unlikelihood_unpaired": unlikelihood_unpaired,
    "dft": dft,
    "ppo_token": ppo_token,
    "apa_token": apa_token,
    "ld_dpo": ld_dpo,
}
LOSSES = {
    "unlikelihood": unlikelihood_loss,
    "unlikelihood_unpaired": unlikelihood_unpaired_loss,
    "dft": dft_loss,
    "ppo_token": ppo_token_loss,
    "apa_token": apa_token_loss,
    "ld_dpo": ld_dpo_loss,
}
