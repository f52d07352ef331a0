"""The short forms of the page "Unifying RLHF Objectives", word for word; their faithful forms stand in the other files.

The page writes rules to be compared, not to be trained: factors are dropped, and what a paper estimates is taken as
given. Where it names no loss, the one reported here is the simplest with that gradient.
"""

import math
from typing import TYPE_CHECKING

from rlhf_data.rules.batch import PairWeights, Positive, weighted_mean
from rlhf_data.rules.stable import bounded_exp, slope, softplus

if TYPE_CHECKING:
    from torch import Tensor


def sft(n_tokens: "Tensor") -> "Tensor":
    """Imitate each completion, by the sum over its tokens.

        w = 1

    Parts from `sft` in the reduction, which is a part of that rule.

    Args:
        n_tokens: tokens of each completion, (n,); every completion with at least one gets the same weight.

    Returns:
        Ones, (n,).

    Source: "Unifying RLHF Objectives", SFT: w₊ = 1.

    >>> import torch
    >>> sft(torch.tensor([3, 9]))
    tensor([1., 1.], dtype=torch.float64)
    """
    return (n_tokens > 0).double()


def sft_loss(policy_logps: "Tensor") -> "Tensor":
    """−log π(y) of each row, (n,)."""
    return -policy_logps


def c_rlft(chosen_n_tokens: "Tensor") -> PairWeights:
    """Imitate both answers of a pair, the rejected one a tenth as much.

        w₊ = 1,  w₋ = −0.1

    Parts from `c_rlft` in that the class follows from the pair and not from a label, and nothing is normalised.

    Args:
        chosen_n_tokens: tokens of each chosen completion, (n,).

    Returns:
        Ones, and −0.1, each (n,).

    Source: "Unifying RLHF Objectives", C-RLFT: w₊ = 1, w₋ ≈ −0.1.

    >>> import torch
    >>> c_rlft(torch.tensor([3])).rejected
    tensor([-0.1000], dtype=torch.float64)
    """
    ones = sft(chosen_n_tokens)
    return PairWeights(chosen=ones, rejected=-0.1 * ones)


def c_rlft_loss(policy_chosen_logps: "Tensor", policy_rejected_logps: "Tensor") -> "Tensor":
    """−log π(y₊) − 0.1 log π(y₋) of each pair, (n,)."""
    return -policy_chosen_logps - 0.1 * policy_rejected_logps


def vpg(reward: "Tensor") -> "Tensor":
    """Push each completion by its reward.

        w = reward

    Parts from `vpg` in the baseline.

    Args:
        reward: larger is better, (n,).

    Returns:
        Weights of either sign, (n,).

    Source: "Unifying RLHF Objectives", VPG: w₊ = r(x, y₊).

    >>> import torch
    >>> vpg(torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """
    return reward


def vpg_loss(policy_logps: "Tensor", reward: "Tensor") -> "Tensor":
    """−reward · log π(y) of each row, (n,)."""
    return -reward * policy_logps


def ppo(log_ratio: "Tensor", reward: "Tensor", *, clip: Positive = 0.2) -> "Tensor":
    """Push by the reward until the ratio to the reference is 1 + ε.

        w = ρ · reward  where ρ < 1 + ε, else 0;  ρ = e^log_ratio

    Parts from `ppo` where the reward is negative: this form lets go above 1 + ε, the published one below 1 − ε.

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        reward: larger is better; the page assumes > 0, (n,).
        clip: ε, > 0.

    Returns:
        Weights between 0 and (1 + ε) · reward, (n,).

    Source: "Unifying RLHF Objectives", PPO.

    >>> import torch
    >>> ppo(torch.tensor([0.0, 1.0]), torch.tensor([-1.0, -1.0]))
    tensor([-1., -0.])
    """
    ratio = bounded_exp(log_ratio)
    return (ratio < 1 + clip).to(ratio.dtype) * ratio * reward


def ppo_loss(log_ratio: "Tensor", reward: "Tensor", *, clip: Positive = 0.2) -> "Tensor":
    """−min(ρ, 1 + ε) · reward of each row, (n,)."""
    return -bounded_exp(log_ratio).clamp(max=1 + clip) * reward


def apa(log_ratio: "Tensor", reward: "Tensor") -> "Tensor":
    """Push until the log-ratio is the reward.

        w = reward − log_ratio

    Parts from `apa` in the factor 2 and the temperature.

    Args:
        log_ratio: log π/π_ref of each completion, (n,).
        reward: larger is better, (n,).

    Returns:
        Weights of either sign, (n,).

    Source: "Unifying RLHF Objectives", APA.

    >>> import torch
    >>> apa(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([ 1., -1.])
    """
    return reward - log_ratio


def apa_loss(log_ratio: "Tensor", reward: "Tensor") -> "Tensor":
    """(reward − log_ratio)²/2 of each row, (n,)."""
    return (reward - log_ratio) ** 2 / 2


def kto(reward: "Tensor", log_ratio: "Tensor", weight: "Tensor") -> "Tensor":
    """Push hardest on completions whose reward is near the policy's divergence from the reference.

        w = σ'(reward − KL),  KL = Σ weight·log_ratio / Σ weight

    Parts from `kto` in that the reward is the given one, not the implicit one, so that the weight moves with the
    batch's mean only; in β and λ; and in that no completion is pushed down.

    Args:
        reward: larger is better, (n,).
        log_ratio: log π/π_ref of each completion, (n,): its mean is the page's E[log π/π_ref].
        weight: what each row counts for, (n,), in that mean.

    Returns:
        Weights in [0, 1/4], (n,).

    Source: "Unifying RLHF Objectives", KTO.

    >>> import torch
    >>> kto(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), torch.ones(2))
    tensor([0.2500, 0.1966])
    """
    return slope(reward - weighted_mean(log_ratio, weight).detach())


def kto_loss(policy_logps: "Tensor", reward: "Tensor", log_ratio: "Tensor", weight: "Tensor") -> "Tensor":
    """−σ'(reward − KL) · log π(y) of each row, (n,)."""
    return -kto(reward, log_ratio, weight) * policy_logps


def unlikelihood(chosen_n_tokens: "Tensor") -> PairWeights:
    """Push every pair apart alike, for ever.

        w₊ = w₋ = 1

    The loss has no lower bound. The published −log(1 − p) of each token is no weight on log π(y₋).

    Args:
        chosen_n_tokens: tokens of each chosen completion, (n,); every pair gets the same weight.

    Returns:
        Ones, each (n,).

    Source: "Unifying RLHF Objectives", Unlikelihood; compare Welleck et al. 2019, arXiv:1908.04319.

    >>> import torch
    >>> unlikelihood(torch.tensor([3])).chosen
    tensor([1.], dtype=torch.float64)
    """
    ones = sft(chosen_n_tokens)
    return PairWeights(chosen=ones, rejected=ones)


def unlikelihood_loss(logp_margin: "Tensor") -> "Tensor":
    """−log π(y₊)/π(y₋) of each pair, (n,)."""
    return -logp_margin


def rm(logp_margin: "Tensor") -> PairWeights:
    """Train the policy's own log-prob as if it were a reward model.

        w₊ = w₋ = σ(−logp_margin)

    The page trains a reward r_θ of its own; here r_θ = log π, the one reading of it that weighs log-probs.

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).

    Returns:
        Weights in [0, 1], each (n,).

    Source: "Unifying RLHF Objectives", RM: w₊ = w₋ = σ(r_θ(x, y₋) − r_θ(x, y₊)).

    >>> import torch
    >>> rm(torch.zeros(1)).chosen
    tensor([0.5000])
    """
    weight = (-logp_margin).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def rm_loss(logp_margin: "Tensor") -> "Tensor":
    """−log σ(logp_margin) of each pair, (n,)."""
    return softplus(-logp_margin)


def dpo(log_ratio_margin: "Tensor") -> PairWeights:
    """Push until the log-ratio ranks a pair as its readers did.

        w₊ = w₋ = σ(−log_ratio_margin)

    Parts from `dpo` in β, which stands there both inside and outside σ, and in soft preferences.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).

    Returns:
        Weights in [0, 1], each (n,).

    Source: "Unifying RLHF Objectives", DPO.

    >>> import torch
    >>> dpo(torch.zeros(1)).chosen
    tensor([0.5000])
    """
    weight = (-log_ratio_margin).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def dpo_loss(log_ratio_margin: "Tensor") -> "Tensor":
    """−log σ(log_ratio_margin) of each pair, (n,)."""
    return softplus(-log_ratio_margin)


def rrhf(logp_margin: "Tensor", *, beta: Positive = 1.0) -> PairWeights:
    """Imitate the chosen answer; where it is not β times as likely as the rejected one, push the two apart as well.

        w₊ = 1 + w₋,  w₋ = 1[π(y₊)/π(y₋) < β]

    Parts from `rrhf` in the threshold, which is on log-probs a token there; it is `slic` with δ = log β and λ = 1.

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).
        beta: the ratio that is enough, > 0.

    Returns:
        w₊ is 1 or 2, w₋ 0 or 1, each (n,).

    Source: "Unifying RLHF Objectives", RRHF / SLiC.

    >>> import torch
    >>> rrhf(torch.tensor([-0.5, 0.5]))
    PairWeights(chosen=tensor([2., 1.]), rejected=tensor([1., 0.]))
    """
    close = (logp_margin < math.log(beta)).to(logp_margin.dtype)
    return PairWeights(chosen=1 + close, rejected=close)


def rrhf_loss(logp_margin: "Tensor", policy_chosen_logps: "Tensor", *, beta: Positive = 1.0) -> "Tensor":
    """max(0, log β − logp_margin) − log π(y₊) of each pair, (n,)."""
    return (math.log(beta) - logp_margin).clamp(min=0) - policy_chosen_logps


RULES = {
    "seed.sft": sft,
    "seed.c_rlft": c_rlft,
    "seed.vpg": vpg,
    "seed.ppo": ppo,
    "seed.apa": apa,
    "seed.kto": kto,
    "seed.unlikelihood": unlikelihood,
    "seed.rm": rm,
    "seed.dpo": dpo,
    "seed.rrhf": rrhf,
}
LOSSES = {
    "seed.sft": sft_loss,
    "seed.c_rlft": c_rlft_loss,
    "seed.vpg": vpg_loss,
    "seed.ppo": ppo_loss,
    "seed.apa": apa_loss,
    "seed.kto": kto_loss,
    "seed.unlikelihood": unlikelihood_loss,
    "seed.rm": rm_loss,
    "seed.dpo": dpo_loss,
    "seed.rrhf": rrhf_loss,
}
