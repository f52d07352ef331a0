"""Rules over preferences that read a gap of rewards or the lengths beside the log-ratio margin."""

from typing import TYPE_CHECKING, Literal

from rlhf_data.rules.batch import NotNegative, PairWeights, Positive
from rlhf_data.rules.stable import bounded_exp, slope, softplus

if TYPE_CHECKING:
    from torch import Tensor

LEAST_MARGIN = 1e-30


def odpo(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, offset_scale: NotNegative = 1.0
) -> PairWeights:
    """DPO that asks for a larger margin where the rewards are further apart.

        w₊ = w₋ = β σ(α log margin − β · log_ratio_margin)

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        margin: reward of chosen minus that of rejected, ≥ 0, (n,); below 1e-30 it counts as 1e-30. As the gap goes to
            0 the offset goes to −∞ and the weight to 0: equally good answers are not pushed apart.
        beta: inverse temperature, > 0.
        offset_scale: α, ≥ 0; 0 is DPO.

    Returns:
        Weights in (0, β), each (n,).

    Source: Amini et al. 2024, DPO with an offset, arXiv:2402.10571, with the logarithm as f.

    >>> import torch
    >>> odpo(torch.zeros(2), torch.tensor([1.0, 3.0]), beta=0.1, offset_scale=1.0).chosen
    tensor([0.0500, 0.0750])
    """
    weight = beta * (offset_scale * _log(margin) - beta * log_ratio_margin).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def odpo_loss(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, offset_scale: NotNegative = 1.0
) -> "Tensor":
    """−log σ(β·log_ratio_margin − α log margin) of each pair, (n,)."""
    return softplus(offset_scale * _log(margin) - beta * log_ratio_margin)


def rpo_fwd_kl(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, reward_scale: Positive = 1.0
) -> PairWeights:
    """Fit the implicit reward gap to the given one, by the policy's own preference as the measure.

        w₊ = w₋ = β σ'(β · log_ratio_margin) (η margin − β · log_ratio_margin)

    Turns back where the implicit gap is larger than the given one, so a small gap is learned as small.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        margin: reward of chosen minus that of rejected, ≥ 0, (n,).
        beta: inverse temperature, > 0.
        reward_scale: η, nats of implicit reward for one unit of reward, > 0.

    Returns:
        Weights of either sign, each (n,).

    Source: Sun et al. 2025, reward-aware preference optimization, arXiv:2502.00203; `rpo_fwd_kl` in NeMo-Aligner.
    Its backward form is `dpo` with preference σ(η margin).

    >>> import torch
    >>> rpo_fwd_kl(torch.zeros(2), torch.tensor([0.0, 2.0]), beta=0.1).chosen
    tensor([0.0000, 0.0500])
    """
    x = beta * log_ratio_margin
    weight = beta * slope(x) * (reward_scale * margin - x)
    return PairWeights(chosen=weight, rejected=weight)


def rpo_fwd_kl_loss(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, reward_scale: Positive = 1.0
) -> "Tensor":
    """KL(Bernoulli(σ(β·log_ratio_margin)) ‖ Bernoulli(σ(η·margin))) of each pair, (n,)."""
    x, target = beta * log_ratio_margin, reward_scale * margin
    return x.sigmoid() * (softplus(-target) - softplus(-x)) + (-x).sigmoid() * (softplus(target) - softplus(x))


def rpo_sq(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, reward_scale: Positive = 1.0
) -> PairWeights:
    """Regress the implicit reward gap on the given one.

        w₊ = w₋ = 2β (η margin − β · log_ratio_margin)

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        margin: reward of chosen minus that of rejected, ≥ 0, (n,).
        beta: inverse temperature, > 0.
        reward_scale: η, nats of implicit reward for one unit of reward, > 0.

    Returns:
        Weights of either sign, each (n,).

    Source: Fisch et al. 2024, reward distillation, arXiv:2405.19316; `rpo_sq` in NeMo-Aligner.

    >>> import torch
    >>> rpo_sq(torch.tensor([0.0, 30.0]), torch.tensor([2.0, 2.0]), beta=0.1).chosen
    tensor([ 0.4000, -0.2000])
    """
    weight = 2 * beta * (reward_scale * margin - beta * log_ratio_margin)
    return PairWeights(chosen=weight, rejected=weight)


def rpo_sq_loss(
    log_ratio_margin: "Tensor", margin: "Tensor", *, beta: Positive = 0.1, reward_scale: Positive = 1.0
) -> "Tensor":
    """(β·log_ratio_margin − η·margin)² of each pair, (n,)."""
    return (beta * log_ratio_margin - reward_scale * margin) ** 2


def rdpo(
    log_ratio_margin: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    beta: Positive = 0.1,
    length_penalty: NotNegative = 0.01,
) -> PairWeights:
    """DPO that credits part of a preference to length, and so does not learn it.

        w₊ = w₋ = β σ(−(β · log_ratio_margin + α (n₊ − n₋)))

    A chosen answer that is longer gets less weight than under DPO, a shorter one more.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        beta: inverse temperature, > 0.
        length_penalty: α, ≥ 0: what a token is worth to a reader; 0 is DPO.

    Returns:
        Weights in (0, β), each (n,).

    Source: Park et al. 2024, R-DPO, arXiv:2403.19159.

    >>> import torch
    >>> rdpo(torch.zeros(2), torch.tensor([9, 1]), torch.tensor([1, 9]), beta=0.1, length_penalty=0.1).chosen
    tensor([0.0310, 0.0690])
    """
    longer = (chosen_n_tokens - rejected_n_tokens).to(log_ratio_margin.dtype)
    weight = beta * (-beta * log_ratio_margin - length_penalty * longer).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def rdpo_loss(
    log_ratio_margin: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    beta: Positive = 0.1,
    length_penalty: NotNegative = 0.01,
) -> "Tensor":
    """−log σ(β·log_ratio_margin + α(n₊ − n₋)) of each pair, (n,)."""
    longer = (chosen_n_tokens - rejected_n_tokens).to(log_ratio_margin.dtype)
    return softplus(-beta * log_ratio_margin - length_penalty * longer)


def dpo_norm(
    mean_log_ratio_margin: "Tensor", chosen_n_tokens: "Tensor", rejected_n_tokens: "Tensor", *, beta: Positive = 5.0
) -> PairWeights:
    """DPO over log-ratios a token, so that a long answer weighs no more than a short one.

        w₊ = β σ(−β · mean_log_ratio_margin) / n₊,  w₋ = β σ(−β · mean_log_ratio_margin) / n₋

    Args:
        mean_log_ratio_margin: chosen's log-ratio a token minus rejected's, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        beta: inverse temperature, > 0; as log-ratios are means, larger than DPO's.

    Returns:
        Weights in (0, β), each (n,).

    Source: Lambert et al. 2024, Tülu 3, arXiv:2411.15124, length-normalized DPO (`dpo_norm` in open-instruct).

    >>> import torch
    >>> dpo_norm(torch.zeros(1), torch.tensor([5]), torch.tensor([1]), beta=5.0)
    PairWeights(chosen=tensor([0.5000]), rejected=tensor([2.5000]))
    """
    push = beta * (-beta * mean_log_ratio_margin).sigmoid()
    return PairWeights(chosen=push / chosen_n_tokens, rejected=push / rejected_n_tokens)


def dpo_norm_loss(mean_log_ratio_margin: "Tensor", *, beta: Positive = 5.0) -> "Tensor":
    """−log σ(β·mean_log_ratio_margin) of each pair, (n,)."""
    return softplus(-beta * mean_log_ratio_margin)


def ipo_avg(
    mean_log_ratio_margin: "Tensor", chosen_n_tokens: "Tensor", rejected_n_tokens: "Tensor", *, tau: Positive = 0.1
) -> PairWeights:
    """IPO over log-ratios a token, which is what TRL, HALOs and LLaMA-Factory train.

        w₊ = 2 (1/(2τ) − mean_log_ratio_margin) / n₊,  w₋ = 2 (1/(2τ) − mean_log_ratio_margin) / n₋

    1/(2τ) is asked of a mean here, of a sum in `ipo`: with the same τ this rule goes very much further.

    Args:
        mean_log_ratio_margin: chosen's log-ratio a token minus rejected's, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        tau: strength of the pull towards the reference, > 0.

    Returns:
        Weights of either sign, each (n,).

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17, over mean log-probs, by its authors' word in TRL.

    >>> import torch
    >>> ipo_avg(torch.zeros(1), torch.tensor([5]), torch.tensor([1]), tau=0.1)
    PairWeights(chosen=tensor([2.]), rejected=tensor([10.]))
    """
    push = 2 * (1 / (2 * tau) - mean_log_ratio_margin)
    return PairWeights(chosen=push / chosen_n_tokens, rejected=push / rejected_n_tokens)


def ipo_avg_loss(mean_log_ratio_margin: "Tensor", *, tau: Positive = 0.1) -> "Tensor":
    """(mean_log_ratio_margin − 1/(2τ))² of each pair, (n,)."""
    return (mean_log_ratio_margin - 1 / (2 * tau)) ** 2


def wpo(
    log_ratio_margin: "Tensor",
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    policy_chosen_mean_log_p2: "Tensor",
    policy_rejected_mean_log_p2: "Tensor",
    *,
    beta: Positive = 0.1,
    clamp: Literal["product", "none"] = "product",
) -> PairWeights:
    """DPO that counts a pair by how much it looks like the policy's own text.

        w₊ = w₋ = W β σ(−β · log_ratio_margin),  W = W(y₊) W(y₋), at most 1
        W(y) = e^(mean over tokens of log p − log Σ p²), a constant to autograd

    Σ p² is over the vocabulary: the p that a token drawn from the policy has on average.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        chosen_mean_logp: log-prob a token of the chosen completion, (n,).
        rejected_mean_logp: the same of the rejected one, (n,).
        policy_chosen_mean_log_p2: mean over tokens of log Σ p² where the chosen completion stands, (n,).
        policy_rejected_mean_log_p2: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.
        clamp: `product` for W ≤ 1 as in the authors' code, `none` as in TRL; log W above 60 counts as 60.

    Returns:
        Weights in [0, β) under `product`, each (n,).

    Source: Zhou et al. 2024, WPO, arXiv:2406.11827, equation 2 with the sampled alignment of section 3.2.

    >>> import torch
    >>> half, zero = torch.tensor([0.5]).log(), torch.zeros(1)
    >>> wpo(zero, half, zero, zero, zero, beta=0.1).chosen
    tensor([0.0250])
    """
    likely = _likeness(
        chosen_mean_logp - policy_chosen_mean_log_p2 + rejected_mean_logp - policy_rejected_mean_log_p2, clamp
    )
    weight = likely * beta * (-beta * log_ratio_margin).sigmoid()
    return PairWeights(chosen=weight, rejected=weight)


def wpo_loss(
    log_ratio_margin: "Tensor",
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    policy_chosen_mean_log_p2: "Tensor",
    policy_rejected_mean_log_p2: "Tensor",
    *,
    beta: Positive = 0.1,
    clamp: Literal["product", "none"] = "product",
) -> "Tensor":
    """−W log σ(β·log_ratio_margin) of each pair, (n,), W a constant."""
    likely = _likeness(
        chosen_mean_logp - policy_chosen_mean_log_p2 + rejected_mean_logp - policy_rejected_mean_log_p2, clamp
    )
    return likely * softplus(-beta * log_ratio_margin)


def _likeness(log_weight: "Tensor", clamp: str) -> "Tensor":
    return (log_weight.clamp(max=0).exp() if clamp == "product" else bounded_exp(log_weight)).detach()


def rm(
    chosen_score: "Tensor",
    rejected_score: "Tensor",
    preference: "Tensor",
    *,
    margin: NotNegative = 0.0,
    centre: NotNegative = 0.0,
) -> PairWeights:
    """Train a reward head to score the chosen answer higher; the weights are of ∇score, not of ∇log π.

        w₊ = v − 2k (r₊ + r₋),  w₋ = v + 2k (r₊ + r₋),  v = p σ(m − (r₊ − r₋)) − (1 − p) σ(m + (r₊ − r₋))

    Args:
        chosen_score: r₊, the head's score of the chosen completion, (n,).
        rejected_score: r₋, the same of the rejected one, (n,).
        preference: p, probability that chosen is the better one, (n,); 1 is the published rule.
        margin: m, ≥ 0: how far apart the scores should be.
        centre: k, ≥ 0: how strongly the mean score of a pair is drawn to 0.

    Returns:
        Weights of either sign, each (n,).

    Source: Bradley and Terry 1952 as in Ouyang et al. 2022, arXiv:2203.02155, equation 1; the margin as in Touvron et
    al. 2023, arXiv:2307.09288; centring as in Eisenstein et al. 2023, arXiv:2312.09244.

    >>> import torch
    >>> rm(torch.tensor([1.0]), torch.tensor([1.0]), torch.ones(1), centre=0.1)
    PairWeights(chosen=tensor([0.1000]), rejected=tensor([0.9000]))
    """
    return _head_weights(chosen_score, rejected_score, preference, margin, centre)


def rm_loss(
    chosen_score: "Tensor",
    rejected_score: "Tensor",
    preference: "Tensor",
    *,
    margin: NotNegative = 0.0,
    centre: NotNegative = 0.0,
) -> "Tensor":
    """−p log σ(r₊ − r₋ − m) − (1 − p) log σ(r₋ − r₊ − m) + k (r₊ + r₋)² of each pair, (n,)."""
    return _head_loss(chosen_score, rejected_score, preference, margin, centre)


def rm_margin(
    chosen_score: "Tensor",
    rejected_score: "Tensor",
    preference: "Tensor",
    margin: "Tensor",
    *,
    scale: NotNegative = 1.0,
    centre: NotNegative = 0.0,
) -> PairWeights:
    """Train a reward head to score the chosen answer higher by what the raters saw between the two.

        w₊ = v − 2k (r₊ + r₋),  w₋ = v + 2k (r₊ + r₋),  v = p σ(s m − (r₊ − r₋)) − (1 − p) σ(s m + (r₊ − r₋))

    Parts from `rm` in m, which is each row's own here.

    Args:
        chosen_score: r₊, the head's score of the chosen completion, (n,).
        rejected_score: r₋, the same of the rejected one, (n,).
        preference: p, probability that chosen is the better one, (n,); 1 is the published rule.
        margin: m, the gap of the two rewards, ≥ 0, (n,).
        scale: s, ≥ 0: nats of score for a unit of that gap.
        centre: k, ≥ 0: how strongly the mean score of a pair is drawn to 0.

    Returns:
        Weights of either sign, each (n,).

    Source: Touvron et al. 2023, arXiv:2307.09288, equation 2; centring as in Eisenstein et al. 2023, arXiv:2312.09244.

    >>> import torch
    >>> rm_margin(torch.tensor([1.0]), torch.tensor([0.0]), torch.ones(1), torch.tensor([1.0])).chosen
    tensor([0.5000])
    """
    return _head_weights(chosen_score, rejected_score, preference, scale * margin, centre)


def rm_margin_loss(
    chosen_score: "Tensor",
    rejected_score: "Tensor",
    preference: "Tensor",
    margin: "Tensor",
    *,
    scale: NotNegative = 1.0,
    centre: NotNegative = 0.0,
) -> "Tensor":
    """−p log σ(r₊ − r₋ − s m) − (1 − p) log σ(r₋ − r₊ − s m) + k (r₊ + r₋)² of each pair, (n,)."""
    return _head_loss(chosen_score, rejected_score, preference, scale * margin, centre)


def _head_weights(
    chosen: "Tensor", rejected: "Tensor", preference: "Tensor", margin: "Tensor | float", centre: float
) -> PairWeights:
    gap = chosen - rejected
    push = preference * (margin - gap).sigmoid() - (1 - preference) * (margin + gap).sigmoid()
    drawn = 2 * centre * (chosen + rejected)
    return PairWeights(chosen=push - drawn, rejected=push + drawn)


def _head_loss(
    chosen: "Tensor", rejected: "Tensor", preference: "Tensor", margin: "Tensor | float", centre: float
) -> "Tensor":
    gap = chosen - rejected
    told = preference * softplus(margin - gap) + (1 - preference) * softplus(margin + gap)
    return told + centre * (chosen + rejected) ** 2


def _log(margin: "Tensor") -> "Tensor":
    return margin.clamp(min=LEAST_MARGIN).log()


RULES = {
    "odpo": odpo,
    "rpo_fwd_kl": rpo_fwd_kl,
    "rpo_sq": rpo_sq,
    "rdpo": rdpo,
    "dpo_norm": dpo_norm,
    "ipo_avg": ipo_avg,
    "wpo": wpo,
    "rm": rm,
    "rm_margin": rm_margin,
}
LOSSES = {
    "odpo": odpo_loss,
    "rpo_fwd_kl": rpo_fwd_kl_loss,
    "rpo_sq": rpo_sq_loss,
    "rdpo": rdpo_loss,
    "dpo_norm": dpo_norm_loss,
    "ipo_avg": ipo_avg_loss,
    "wpo": wpo_loss,
    "rm": rm_loss,
    "rm_margin": rm_margin_loss,
}
