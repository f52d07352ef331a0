"""Rules over rewarded completions: the reward, or how far it is from a baseline, is the weight.

A snapshot is written once, so the policy that wrote the completions is not at hand: where a paper divides by it, these
rules divide by the reference. That is exact for completions that the reference wrote; rules named `…_old` read the
log-probs of the policy that did.
"""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import Above1, Positive, weighted_mean
from rlhf_data.rules.stable import bounded_exp

if TYPE_CHECKING:
    from torch import Tensor


def vpg(reward: "Tensor", *, baseline: float = 0.0) -> "Tensor":
    """Push each completion by how much its reward is above the baseline.

        w = reward − baseline

    Args:
        reward: larger is better, (n,).
        baseline: the reward of an answer that is neither pushed up nor down.

    Returns:
        Weights of either sign, (n,).

    Source: Williams 1992, REINFORCE, with a constant baseline.

    >>> import torch
    >>> vpg(torch.tensor([1.0, 0.0]), baseline=0.5)
    tensor([ 0.5000, -0.5000])
    """
    return reward - baseline


def vpg_loss(policy_logps: "Tensor", reward: "Tensor", *, baseline: float = 0.0) -> "Tensor":
    """−(reward − baseline) log π(y) of each row, (n,)."""
    return -vpg(reward, baseline=baseline) * policy_logps


def reinforce(reward: "Tensor", weight: "Tensor") -> "Tensor":
    """Push each completion by its reward, normalised over the batch.

        w = (reward − r̄)/s,  r̄ = Σ weight·reward / Σ weight,  s² = Σ weight·(reward − r̄)² / Σ weight ≥ 1e-8

    A batch of one, or one whose rewards are all equal, teaches nothing.

    Args:
        reward: larger is better, (n,).
        weight: what each row counts for, (n,), in both means.

    Returns:
        Weights with mean 0 and variance 1 over the batch, (n,).

    Source: Hu et al. 2025, REINFORCE++, arXiv:2501.03262: the advantage normalised over the global batch, without its
    penalty and clipping.

    >>> import torch
    >>> reinforce(torch.tensor([3.0, 1.0]), torch.ones(2))
    tensor([ 1., -1.])
    """
    centred = reward - weighted_mean(reward, weight)
    return centred / weighted_mean(centred**2, weight).clamp(min=1e-8).sqrt()


def reinforce_loss(policy_logps: "Tensor", reward: "Tensor", weight: "Tensor") -> "Tensor":
    """−(reward − r̄)/s · log π(y) of each row, (n,)."""
    return -reinforce(reward, weight) * policy_logps


def ppo(log_ratio: "Tensor", reward: "Tensor", *, clip_low: Positive = 0.2, clip_high: Positive = 0.2) -> "Tensor":
    """Push by the reward until the ratio to the reference leaves the clip on the side where the reward wants it.

        w = ρ · reward  where reward > 0 and ρ < 1 + ε_high, or reward < 0 and ρ > 1 − ε_low; else 0
        ρ = e^log_ratio

    One ratio a completion, where most code has one a token. The reward is taken as the advantage: centre it first.

    Args:
        log_ratio: log π/π_ref of each completion, (n,); above 60 it counts as 60. π_ref stands for the policy that
            wrote them.
        reward: the advantage, (n,).
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.

    Returns:
        Weights below (1 + ε_high) · reward, (n,); not bounded below.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.

    >>> import torch
    >>> ppo(torch.tensor([1.0, 0.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    tensor([ 0.0000,  1.0000, -0.0000, -2.7183])
    """
    ratio = bounded_exp(log_ratio)
    inside = ((reward > 0) & (ratio < 1 + clip_high)) | ((reward < 0) & (ratio > 1 - clip_low))
    return inside.to(ratio.dtype) * ratio * reward


def ppo_loss(log_ratio: "Tensor", reward: "Tensor", *, clip_low: Positive = 0.2, clip_high: Positive = 0.2) -> "Tensor":
    """−min(ρ · reward, clip(ρ, 1 − ε_low, 1 + ε_high) · reward) of each row, (n,)."""
    ratio = bounded_exp(log_ratio)
    return -(ratio * reward).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * reward)


def ppo_dual_clip(
    log_ratio: "Tensor",
    reward: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    clip_bad: Above1 = 3.0,
) -> "Tensor":
    """PPO that lets go of a bad answer whose ratio has run away, instead of pushing it the harder.

        w = the weight of `ppo`, but 0 where reward < 0 and ρ ≥ c

    Args:
        log_ratio: log π/π_ref of each completion, (n,). π_ref stands for the policy that wrote them.
        reward: the advantage, (n,).
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.
        clip_bad: c, > 1.

    Returns:
        Weights between c · reward and (1 + ε_high) · reward, (n,).

    Source: Ye et al. 2019, arXiv:1912.09729.

    >>> import torch
    >>> ppo_dual_clip(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -1.0]))
    tensor([-2.7183, -0.0000])
    """
    pushed = ppo(log_ratio, reward, clip_low=clip_low, clip_high=clip_high)
    return pushed * ((reward >= 0) | (bounded_exp(log_ratio) < clip_bad)).to(pushed.dtype)


def ppo_dual_clip_loss(
    log_ratio: "Tensor",
    reward: "Tensor",
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    clip_bad: Above1 = 3.0,
) -> "Tensor":
    """The loss of `ppo`, at most −c · reward where the reward is negative, (n,)."""
    loss = ppo_loss(log_ratio, reward, clip_low=clip_low, clip_high=clip_high)
    return loss.minimum(-clip_bad * reward).where(reward < 0, loss)


def apa(log_ratio: "Tensor", reward: "Tensor", *, temperature: Positive = 1.0) -> "Tensor":
    """Regress the log-ratio on the reward: a completion is pushed only as far as it deserves.

        w = 2 (reward/λ − log_ratio)

    Args:
        log_ratio: log π/π_ref of each completion, (n,). π_ref stands for the policy that wrote them.
        reward: the advantage, (n,).
        temperature: λ, > 0: how much reward a nat of log-ratio costs; the authors' code gives 1/λ.

    Returns:
        Weights of either sign, (n,).

    Source: Zhu et al. 2023, advantage-induced policy alignment, arXiv:2306.02231, its squared loss, with one log-ratio
    a completion. The gradient of the square has the factor 2, and λ divides the advantage; `apa_token` is the
    form that is trained.

    >>> import torch
    >>> apa(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), temperature=1.0)
    tensor([ 2., -2.])
    """
    return 2 * (reward / temperature - log_ratio)


def apa_loss(log_ratio: "Tensor", reward: "Tensor", *, temperature: Positive = 1.0) -> "Tensor":
    """(log_ratio − reward/λ)² of each row, (n,)."""
    return (log_ratio - reward / temperature) ** 2


def ppo_old(
    old_log_ratio: "Tensor", reward: "Tensor", *, clip_low: Positive = 0.2, clip_high: Positive = 0.2
) -> "Tensor":
    """PPO with one ratio a completion, against the policy that wrote it.

        w = the weight of `ppo`, with ρ = e^old_log_ratio

    Args:
        old_log_ratio: log π/π_old of each completion, (n,); above 60 it counts as 60.
        reward: the advantage, (n,).
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.

    Returns:
        Weights of either sign, (n,); not bounded below where the reward is negative.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7, with a completion as the action.

    >>> import torch
    >>> ppo_old(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    tensor([1., 0.])
    """
    return ppo(old_log_ratio, reward, clip_low=clip_low, clip_high=clip_high)


def ppo_old_loss(
    old_log_ratio: "Tensor", reward: "Tensor", *, clip_low: Positive = 0.2, clip_high: Positive = 0.2
) -> "Tensor":
    """−min(ρ · reward, clip(ρ, 1 − ε_low, 1 + ε_high) · reward) of each row, (n,)."""
    return ppo_loss(old_log_ratio, reward, clip_low=clip_low, clip_high=clip_high)


def apa_old(old_log_ratio: "Tensor", reward: "Tensor", *, temperature: Positive = 1.0) -> "Tensor":
    """APA with one log-ratio a completion, against the policy that wrote it.

        w = 2 (reward/λ − old_log_ratio)

    Args:
        old_log_ratio: log π/π_old of each completion, (n,).
        reward: the advantage, (n,).
        temperature: λ, > 0.

    Returns:
        Weights of either sign, (n,).

    Source: Zhu et al. 2023, advantage-induced policy alignment, arXiv:2306.02231.

    >>> import torch
    >>> apa_old(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([ 2., -2.])
    """
    return apa(old_log_ratio, reward, temperature=temperature)


def apa_old_loss(old_log_ratio: "Tensor", reward: "Tensor", *, temperature: Positive = 1.0) -> "Tensor":
    """(old_log_ratio − reward/λ)² of each row, (n,)."""
    return apa_loss(old_log_ratio, reward, temperature=temperature)


def cispo(log_ratio: "Tensor", reward: "Tensor", *, clip_low: Positive = 1.0, clip_high: Positive = 4.0) -> "Tensor":
    """Push each completion by its reward and its ratio, clipped but never dropped.

        w = clip(ρ, 1 − ε_low, 1 + ε_high) · reward,  ρ = e^log_ratio, a constant to autograd

    Where PPO lets a completion go, this rule keeps pushing with a bounded weight. ε_low = 1 sets no lower bound.

    Args:
        log_ratio: log π/π_ref of each completion, (n,). π_ref stands for the policy that wrote them.
        reward: the advantage, (n,).
        clip_low: ε_low, > 0.
        clip_high: ε_high, > 0.

    Returns:
        Weights between (1 − ε_low) · reward and (1 + ε_high) · reward, (n,).

    Source: MiniMax 2025, CISPO, arXiv:2506.13585, equation 4, with one ratio a completion.

    >>> import torch
    >>> cispo(torch.tensor([0.0, 9.0]), torch.tensor([-1.0, 1.0]))
    tensor([-1.,  5.])
    """
    return bounded_exp(log_ratio).clamp(1 - clip_low, 1 + clip_high) * reward


def cispo_loss(
    policy_logps: "Tensor",
    log_ratio: "Tensor",
    reward: "Tensor",
    *,
    clip_low: Positive = 1.0,
    clip_high: Positive = 4.0,
) -> "Tensor":
    """−clip(ρ) · reward · log π(y) of each row, (n,), ρ a constant."""
    return -cispo(log_ratio, reward, clip_low=clip_low, clip_high=clip_high) * policy_logps


def k3(log_ratio: "Tensor", *, coefficient: Positive = 1.0) -> "Tensor":
    """Pull the policy back to the reference, and nothing else: a term for sums of rules.

        w = −k (1 − e^(−log_ratio))

    Args:
        log_ratio: log π/π_ref of each completion, (n,); below −60 it counts as −60.
        coefficient: k, > 0.

    Returns:
        Weights > −k, (n,): negative where the policy is above the reference.

    Source: Schulman 2020, "Approximating KL divergence", the estimate k3 = e^(−log_ratio) − 1 + log_ratio ≥ 0 of
    KL(π‖π_ref). Averaged over completions that π wrote, its gradient is that of the other direction, KL(π_ref‖π).

    >>> import torch
    >>> k3(torch.tensor([0.0, 0.6931]))
    tensor([ 0.0000, -0.5000])
    """
    return coefficient * (bounded_exp(-log_ratio) - 1)


def k3_loss(log_ratio: "Tensor", *, coefficient: Positive = 1.0) -> "Tensor":
    """Of each row, k (e^(−log_ratio) − 1 + log_ratio), (n,)."""
    return coefficient * (bounded_exp(-log_ratio) - 1 + log_ratio)


def sppo(log_ratio: "Tensor", reward: "Tensor", *, beta: Positive = 0.001) -> "Tensor":
    """Move each answer's log-ratio to what its win rate asks for.

        w = 2 ((reward − 1/2)/β − log_ratio)

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        reward: the probability that the answer beats another of the same policy's, in [0, 1], (n,).
        beta: 1/η of the paper, > 0.

    Returns:
        Weights of either sign, (n,).

    Source: Wu et al. 2024, SPPO, arXiv:2405.00675, equation 4.7; `sppo_hard` takes 1 and 0 for a pair.

    >>> import torch
    >>> sppo(torch.zeros(2), torch.tensor([0.5, 0.75]), beta=0.1)
    tensor([0., 5.])
    """
    return 2 * ((reward - 0.5) / beta - log_ratio)


def sppo_loss(log_ratio: "Tensor", reward: "Tensor", *, beta: Positive = 0.001) -> "Tensor":
    """(log_ratio − (reward − 1/2)/β)² of each row, (n,)."""
    return (log_ratio - (reward - 0.5) / beta) ** 2


RULES = {
    "vpg": vpg,
    "reinforce": reinforce,
    "ppo": ppo,
    "ppo_old": ppo_old,
    "ppo_dual_clip": ppo_dual_clip,
    "cispo": cispo,
    "apa": apa,
    "apa_old": apa_old,
    "sppo": sppo,
    "k3": k3,
}
LOSSES = {
    "vpg": vpg_loss,
    "reinforce": reinforce_loss,
    "ppo": ppo_loss,
    "ppo_old": ppo_old_loss,
    "ppo_dual_clip": ppo_dual_clip_loss,
    "cispo": cispo_loss,
    "apa": apa_loss,
    "apa_old": apa_old_loss,
    "sppo": sppo_loss,
    "k3": k3_loss,
}
