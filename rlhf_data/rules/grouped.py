"""Rules over several answers to one prompt: an answer's weight depends on how the others did.

An optimizer step holds whole groups. What a group's answers are worth, its mean and its best, counts each answer of
row weight > 0 once, whatever it weighs: doubling a prompt's weight doubles its gradient and changes nothing else.
"""

from typing import TYPE_CHECKING, Literal

from rlhf_data.rules.batch import NotNegative, Positive, TokenWeights, per_row
from rlhf_data.rules.stable import bounded_exp
from rlhf_data.rules.supervised import Reduction, sft

if TYPE_CHECKING:
    from torch import Tensor

Spread = Literal["sample", "population", "none"]
Single = Literal["zero", "reward"]


def rloo(reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """Push each answer by how much better it is than the prompt's other answers.

        w = reward − mean reward of the others

    A prompt with one answer teaches nothing.

    Args:
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        weight: what each row counts for, (n,); rows of weight 0 are in no mean.

    Returns:
        Weights of either sign that sum to 0 over a group, (n,).

    Source: Ahmadian et al. 2024, back to basics, arXiv:2402.14740, equation 6.

    >>> import torch
    >>> rloo(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 1]), torch.ones(3))
    tensor([ 2., -2.,  0.])
    """
    same = together(group, weight, reward)
    others = (same.sum(1) - 1).clamp(min=0)
    centred = reward - (same * reward).sum(1) / same.sum(1).clamp(min=1)
    # reward − mean of the others, by way of the mean of all: (k/(k − 1)) (reward − mean)
    return centred * (others + 1) / others.clamp(min=1) * (others > 0)


def rloo_loss(policy_logps: "Tensor", reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """−(reward − mean of the others) log π(y) of each row, (n,)."""
    return -rloo(reward, group, weight) * policy_logps


def raft(reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """Imitate the best answer to each prompt: best-of-n as training data.

        w = 1/(number of best answers) where reward = the group's largest, else 0

    Args:
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        weight: what each row counts for, (n,); rows of weight 0 do not compete.

    Returns:
        Weights in [0, 1] that sum to 1 over a group, (n,); equally good answers share.

    Source: Dong et al. 2023, RAFT, arXiv:2304.06767, algorithm 1, which does not say
    which of equally good answers is taken.

    >>> import torch
    >>> raft(torch.tensor([3.0, 1.0, 3.0, 2.0]), torch.tensor([0, 0, 0, 1]), torch.ones(4))
    tensor([0.5000, 0.0000, 0.5000, 1.0000])
    """
    return best(reward, group, weight)


def raft_loss(policy_logps: "Tensor", reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """−log π(y) of a prompt's best answers, their share each, (n,)."""
    return -raft(reward, group, weight) * policy_logps


def rrhf_group(
    policy_logps: "Tensor",
    n_tokens: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    weight: "Tensor",
    *,
    length_power: NotNegative = 1.0,
    rank_weight: NotNegative = 1.0,
    reduction: Literal["sum", "row_mean"] = "sum",
) -> "Tensor":
    """Imitate the best answer; push apart every two answers that the policy ranks the wrong way round.

        w = (κ / nᵖ) (answers that are worse, yet s is larger − answers that are better, yet s is smaller) + best · sft
        s = log-prob / nᵖ

    best is 1/(number of best answers) where reward is the group's largest, else 0; sft is 1 for `sum`, 1/n for
    `row_mean`.

    Args:
        policy_logps: log π(y), (n,).
        n_tokens: n, (n,).
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        weight: what each row counts for, (n,); rows of weight 0 are compared with none.
        length_power: p, ≥ 0; 1 ranks by log-prob a token.
        rank_weight: κ, ≥ 0: 1 as printed, 100 by default in the authors' code.
        reduction: what the imitation term is; `sum` as printed. The authors' code takes the mean over the padded
            length, prompt and padding included, which is `row_mean` times a factor that changes with the batch.

    Returns:
        Weights of either sign, (n,).

    Source: Yuan et al. 2023, RRHF, arXiv:2304.05302, equations 2 to 4: a sum over ordered pairs, and −Σ log p.

    >>> import torch
    >>> one = torch.ones(3)
    >>> rrhf_group(torch.tensor([-2.0, -1.0, -3.0]), one, torch.tensor([2.0, 1.0, 0.0]), torch.zeros(3), one)
    tensor([ 2., -1.,  0.])
    """
    divisor = n_tokens.to(policy_logps.dtype) ** length_power
    wrong = _misranked(policy_logps / divisor, reward, group, weight)
    pushed = rank_weight * (wrong.sum(1) - wrong.sum(0)) / divisor
    imitated = sft(n_tokens, policy_logps, reduction=reduction)
    return pushed + best(reward, group, weight).to(divisor.dtype) * imitated


def rrhf_group_loss(
    policy_logps: "Tensor",
    n_tokens: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    weight: "Tensor",
    *,
    length_power: NotNegative = 1.0,
    rank_weight: NotNegative = 1.0,
    reduction: Literal["sum", "row_mean"] = "sum",
) -> "Tensor":
    """κ Σ max(0, s of a worse answer − s) over worse answers, − best · sft · log π(y), of each row, (n,)."""
    score = policy_logps / n_tokens.to(policy_logps.dtype) ** length_power
    wrong = _misranked(score, reward, group, weight)
    imitated = best(reward, group, weight) * sft(n_tokens, policy_logps, reduction=reduction) * policy_logps
    return rank_weight * (wrong * (score - score[:, None])).sum(1) - imitated


def _misranked(score: "Tensor", reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """1 where row i is better than row j of the same group, yet scores less, (n, n)."""
    wrong = (reward[:, None] > reward) & (score[:, None] < score)
    return together(group, weight, score) * (weight > 0)[:, None] * wrong


def grpo(
    log_ratio: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """GRPO over groups of answers that the reference wrote, with one ratio a completion.

        w = (clipped ρA − k (1 − e^(−log_ratio))) · sft,  A = (reward − group's mean)/(group's deviation + ε)
        clipped ρA = ρA where A > 0 and ρ < 1 + ε_high, or A < 0 and ρ > 1 − ε_low, else 0;  ρ = e^log_ratio

    sft is the weight that the rule `sft` gives the row under the same reduction. `grpo_token` is the published form,
    with a ratio a token; `grpo_old` has the old policy's log-probs beside the reference's.

    Args:
        log_ratio: log π/π_ref of each completion, (n,); where it is exponentiated it counts as within ±60.
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,), in a mean over tokens; rows of weight 0 are in no group.
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.
        kl_weight: k, ≥ 0, of the estimate e^(−log_ratio) + log_ratio − 1 of the divergence.
        spread: the deviation: of the sample (k − 1 in the denominator, verl), of the population (HALOs), or none
            (Dr. GRPO).
        epsilon: ε of the denominator, > 0; 1e-6 in verl, 1e-4 in TRL.
        single: A of an answer that is alone: 0, or its reward as in verl.
        reduction: as in `sft`; `row_mean` as printed.

    Returns:
        Weights of either sign, (n,).

    Source: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, equations 3 and 4; Liu et al. 2025, arXiv:2503.20783, for
    `none`.

    >>> import torch
    >>> zeros, ones, rewards = torch.zeros(2), torch.ones(2), torch.tensor([1.0, 0.0])
    >>> grpo(zeros, rewards, zeros, ones, ones)
    tensor([ 0.7071, -0.7071])
    """
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)
    pushed = _clipped(log_ratio, advantage, clip_low, clip_high) + kl_weight * _back(log_ratio)
    return pushed * sft(n_tokens, weight, reduction=reduction)


def grpo_loss(
    log_ratio: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """(−min(ρA, clip(ρ)A) + k (e^(−log_ratio) + log_ratio − 1)) · sft of each row, (n,)."""
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)
    lost = kl_weight * _divergence(log_ratio) - _surrogate(log_ratio, advantage, clip_low, clip_high)
    return lost * sft(n_tokens, weight, reduction=reduction)


def grpo_old(
    old_log_ratio: "Tensor",
    log_ratio: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """GRPO with one ratio a completion, against the policy that wrote the answers.

        w = the weight of `grpo`, with ρ = e^old_log_ratio

    Args:
        old_log_ratio: log π/π_old of each completion, (n,); above 60 it counts as 60.
        log_ratio: log π/π_ref of each completion, (n,); below −60 it counts as −60 where it is exponentiated.
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,); rows of weight 0 are in no group.
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.
        kl_weight: k, ≥ 0.
        spread: as in `grpo`.
        epsilon: as in `grpo`.
        single: as in `grpo`.
        reduction: as in `sft`.

    Returns:
        Weights of either sign, (n,).

    Source: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, with a completion as the action.

    >>> import torch
    >>> zeros, ones, rewards = torch.zeros(2), torch.ones(2), torch.tensor([1.0, 0.0])
    >>> grpo_old(ones, zeros, rewards, zeros, ones, ones)
    tensor([ 0.0000, -1.9221])
    """
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)
    pushed = _clipped(old_log_ratio, advantage, clip_low, clip_high) + kl_weight * _back(log_ratio)
    return pushed * sft(n_tokens, weight, reduction=reduction)


def grpo_old_loss(
    old_log_ratio: "Tensor",
    log_ratio: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """The loss of `grpo` with ρ = e^old_log_ratio, (n,)."""
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)
    lost = kl_weight * _divergence(log_ratio) - _surrogate(old_log_ratio, advantage, clip_low, clip_high)
    return lost * sft(n_tokens, weight, reduction=reduction)


def grpo_token(
    old_token_log_ratio: "Tensor",
    token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> TokenWeights:
    """GRPO as published: ratios, clipping and divergence token by token.

        w = (clipped ρA − k (1 − e^(−token_log_ratio))) · sft,  a token's ρ = e^old_token_log_ratio

    A, the clipping and sft are those of `grpo`.

    Args:
        old_token_log_ratio: log p/p_old of each token, (tokens,); above 60 it counts as 60.
        token_log_ratio: log p/p_ref of each token, (tokens,); below −60 it counts as −60 where it is exponentiated.
        token_row: the row of each token, (tokens,).
        reward: larger is better, (n,).
        group: the prompt of each completion, (n,).
        n_tokens: tokens of each completion, (n,).
        weight: what each row counts for, (n,); rows of weight 0 are in no group.
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.
        kl_weight: k, ≥ 0.
        spread: as in `grpo`.
        epsilon: as in `grpo`.
        single: as in `grpo`.
        reduction: as in `sft`: `row_mean` as printed, `token_mean` as in DAPO.

    Returns:
        Weights of either sign, (tokens,).

    Source: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, equations 3 and 4.

    >>> import torch
    >>> zeros, ones, rewards = torch.zeros(2), torch.ones(2), torch.tensor([1.0, 0.0])
    >>> grpo_token(zeros, zeros, torch.tensor([0, 1]), rewards, zeros, ones, ones).tokens
    tensor([ 0.7071, -0.7071])
    """
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)[token_row]
    pushed = _clipped(old_token_log_ratio, advantage, clip_low, clip_high) + kl_weight * _back(token_log_ratio)
    return TokenWeights(pushed * sft(n_tokens, weight, reduction=reduction)[token_row])


def grpo_token_loss(
    old_token_log_ratio: "Tensor",
    token_log_ratio: "Tensor",
    token_row: "Tensor",
    reward: "Tensor",
    group: "Tensor",
    n_tokens: "Tensor",
    weight: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    kl_weight: NotNegative = 0.04,
    spread: Spread = "sample",
    epsilon: Positive = 1e-6,
    single: Single = "zero",
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """The loss of `grpo`, summed over each row's tokens, (n,), in the units that `reduction` says."""
    advantage = advantages(reward, group, weight, spread=spread, epsilon=epsilon, single=single)[token_row]
    clipped = _surrogate(old_token_log_ratio, advantage, clip_low, clip_high)
    lost = per_row(kl_weight * _divergence(token_log_ratio) - clipped, token_row, weight)
    return lost * sft(n_tokens, weight, reduction=reduction)


def together(group: "Tensor", weight: "Tensor", like: "Tensor") -> "Tensor":
    """1 where row j is of row i's group and counts at all, else 0, (n, n), in the dtype of `like`."""
    return ((group[:, None] == group) & (weight > 0)).to(like.dtype)


def best(reward: "Tensor", group: "Tensor", weight: "Tensor") -> "Tensor":
    """Each answer's share in being the best of its group, (n,); 0 for rows of weight 0."""
    same = together(group, weight, reward)
    beaten = (same * (reward > reward[:, None])).sum(1)
    as_good = (same * (reward == reward[:, None])).sum(1)
    return ((beaten == 0) & (weight > 0)).to(reward.dtype) / as_good.clamp(min=1)


def advantages(
    reward: "Tensor", group: "Tensor", weight: "Tensor", *, spread: Spread, epsilon: float, single: Single
) -> "Tensor":
    """(reward − group's mean)/(group's deviation + ε), (n,); of an answer that is alone 0, or its reward."""
    same = together(group, weight, reward)
    count = same.sum(1).clamp(min=1)
    centred = reward - (same * reward).sum(1) / count
    if spread != "none":
        squares = (same * centred**2).sum(1) / (count - (1 if spread == "sample" else 0)).clamp(min=1)
        centred = centred / (squares.sqrt() + epsilon)
    alone = reward if single == "reward" else reward * 0
    return centred.where(count > 1, alone)


def _clipped(log_ratio: "Tensor", advantage: "Tensor", clip_low: float, clip_high: float) -> "Tensor":
    ratio = bounded_exp(log_ratio)
    inside = ((advantage > 0) & (ratio < 1 + clip_high)) | ((advantage < 0) & (ratio > 1 - clip_low))
    return inside.to(ratio.dtype) * ratio * advantage


def _surrogate(log_ratio: "Tensor", advantage: "Tensor", clip_low: float, clip_high: float) -> "Tensor":
    ratio = bounded_exp(log_ratio)
    return (ratio * advantage).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def _back(log_ratio: "Tensor") -> "Tensor":
    """The pull of the k3 estimate back to the reference: e^(−log_ratio) − 1."""
    return bounded_exp(-log_ratio) - 1


def _divergence(log_ratio: "Tensor") -> "Tensor":
    return bounded_exp(-log_ratio) - 1 + log_ratio


RULES = {
    "rloo": rloo,
    "raft": raft,
    "rrhf_group": rrhf_group,
    "grpo": grpo,
    "grpo_old": grpo_old,
    "grpo_token": grpo_token,
}
LOSSES = {
    "rloo": rloo_loss,
    "raft": raft_loss,
    "rrhf_group": rrhf_group_loss,
    "grpo": grpo_loss,
    "grpo_old": grpo_old_loss,
    "grpo_token": grpo_token_loss,
}
