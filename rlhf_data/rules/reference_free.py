"""Rules over preferences that need no reference: they compare the policy with itself, or imitate as well."""

from typing import TYPE_CHECKING, Literal

from rlhf_data.rules.batch import NotNegative, PairWeights, Positive
from rlhf_data.rules.stable import LEAST_NATS, log1mexp, softplus
from rlhf_data.rules.supervised import Reduction, sft

if TYPE_CHECKING:
    from torch import Tensor


def simpo(
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    beta: Positive = 2.0,
    gamma: NotNegative = 1.0,
) -> PairWeights:
    """Rank answers as they are generated: by log-prob a token, with a margin, without a reference.

        w₊ = β σ(γ − β (chosen_mean_logp − rejected_mean_logp)) / n₊,  w₋ = the same / n₋

    Args:
        chosen_mean_logp: log-prob a token of the chosen completion, (n,).
        rejected_mean_logp: the same of the rejected one, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        beta: scale of the reward, > 0; the paper uses 2 to 10.
        gamma: target margin, ≥ 0, in units of β · log-prob a token; the authors' code gives γ/β.

    Returns:
        Weights in (0, β), each (n,).

    Source: Meng et al. 2024, arXiv:2405.14734, equation 6.

    >>> import torch
    >>> zeros, two = torch.zeros(1), torch.tensor([2])
    >>> simpo(zeros, zeros, two, two * 2, beta=2.0, gamma=0.0)
    PairWeights(chosen=tensor([0.5000]), rejected=tensor([0.2500]))
    """
    push = beta * (gamma - beta * (chosen_mean_logp - rejected_mean_logp)).sigmoid()
    return PairWeights(chosen=push / chosen_n_tokens, rejected=push / rejected_n_tokens)


def simpo_loss(
    chosen_mean_logp: "Tensor", rejected_mean_logp: "Tensor", *, beta: Positive = 2.0, gamma: NotNegative = 1.0
) -> "Tensor":
    """−log σ(β(chosen_mean_logp − rejected_mean_logp) − γ) of each pair, (n,)."""
    return softplus(gamma - beta * (chosen_mean_logp - rejected_mean_logp))


def cpo(
    logp_margin: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> PairWeights:
    """DPO with a uniform reference, held in place by imitating the chosen answer.

        w₊ = β σ(−β · logp_margin) + α · sft,  w₋ = β σ(−β · logp_margin)

    sft is 1, 1/n₊ or 1/n̄₊: the weight that the rule `sft` gives the chosen answer under the same reduction.

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).
        chosen_n_tokens: n₊, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        beta: inverse temperature, > 0.
        sft_weight: α, ≥ 0.
        reduction: what the imitation term is a mean of; `token_mean` as in TRL, `sum` as printed.

    Returns:
        w₊ in (0, β + α], w₋ in (0, β), each (n,).

    Source: Xu et al. 2024, arXiv:2401.08417, equation 3.

    >>> import torch
    >>> cpo(torch.zeros(1), torch.tensor([4]), torch.ones(1), beta=0.1, sft_weight=1.0)
    PairWeights(chosen=tensor([0.3000]), rejected=tensor([0.0500]))
    """
    push = beta * (-beta * logp_margin).sigmoid()
    return PairWeights(push + sft_weight * sft(chosen_n_tokens, weight, reduction=reduction), push)


def cpo_loss(
    logp_margin: "Tensor",
    policy_chosen_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """−log σ(β·logp_margin) − α·sft·log π(y₊) of each pair, (n,)."""
    imitated = sft(chosen_n_tokens, weight, reduction=reduction) * policy_chosen_logps
    return softplus(-beta * logp_margin) - sft_weight * imitated


def cpo_hinge(
    logp_margin: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> PairWeights:
    """CPO with a hinge: push until the margin is 1/β, and imitate the chosen answer throughout.

        w₊ = β 1[β · logp_margin < 1] + α · sft,  w₋ = β 1[β · logp_margin < 1]

    sft is the weight that the rule `sft` gives the chosen answer under the same reduction.

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).
        chosen_n_tokens: n₊, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        beta: inverse temperature, > 0.
        sft_weight: α, ≥ 0.
        reduction: as in `cpo`.

    Returns:
        w₊ in [0, β + α], w₋ 0 or β, each (n,).

    Source: the hinge of Zhao et al. 2023, arXiv:2305.10425, in the place of CPO's log σ, as in TRL's CPOTrainer; `slic`
    with δ = 1/β but for the scale.

    >>> import torch
    >>> cpo_hinge(torch.tensor([5.0, 15.0]), torch.tensor([4, 4]), torch.ones(2), beta=0.1, sft_weight=0.0).rejected
    tensor([0.1000, 0.0000])
    """
    push = beta * (beta * logp_margin < 1).to(logp_margin.dtype)
    return PairWeights(push + sft_weight * sft(chosen_n_tokens, weight, reduction=reduction), push)


def cpo_hinge_loss(
    logp_margin: "Tensor",
    policy_chosen_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """max(0, 1 − β·logp_margin) − α·sft·log π(y₊) of each pair, (n,)."""
    imitated = sft(chosen_n_tokens, weight, reduction=reduction) * policy_chosen_logps
    return (1 - beta * logp_margin).clamp(min=0) - sft_weight * imitated


def cpo_ipo(
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    tau: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> PairWeights:
    """CPO with IPO's square: bring the margin of mean log-probs to 1/(2τ), and imitate the chosen answer throughout.

        w₊ = 2 (1/(2τ) − M)/n₊ + α · sft,  w₋ = 2 (1/(2τ) − M)/n₋,  M = chosen_mean_logp − rejected_mean_logp

    sft is the weight that the rule `sft` gives the chosen answer under the same reduction.

    Args:
        chosen_mean_logp: log-prob a token of the chosen completion, (n,).
        rejected_mean_logp: the same of the rejected one, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        tau: half the inverse of the margin that is asked for, > 0.
        sft_weight: α, ≥ 0.
        reduction: as in `cpo`.

    Returns:
        Weights of either sign, each (n,).

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17 without its reference, as in TRL's CPOTrainer.

    >>> import torch
    >>> zero, two, one = torch.zeros(1), torch.tensor([2]), torch.ones(1)
    >>> cpo_ipo(zero, zero, two, two, one, tau=0.1, sft_weight=0.0).chosen
    tensor([5.])
    """
    push = 2 * (1 / (2 * tau) - (chosen_mean_logp - rejected_mean_logp))
    imitated = sft(chosen_n_tokens, weight, reduction=reduction)
    return PairWeights(push / chosen_n_tokens + sft_weight * imitated, push / rejected_n_tokens)


def cpo_ipo_loss(
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    policy_chosen_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    tau: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> "Tensor":
    """(M − 1/(2τ))² − α·sft·log π(y₊) of each pair, (n,)."""
    imitated = sft(chosen_n_tokens, weight, reduction=reduction) * policy_chosen_logps
    return (chosen_mean_logp - rejected_mean_logp - 1 / (2 * tau)) ** 2 - sft_weight * imitated


def orpo(
    chosen_mean_logp: "Tensor",
    rejected_mean_logp: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    ratio_weight: NotNegative = 0.1,
) -> PairWeights:
    """Imitate the chosen answer while its odds against the rejected one are raised.

        w₊ = 1/n₊ + λ σ(−o) / (n₊ (1 − P₊)),  w₋ = λ σ(−o) / (n₋ (1 − P₋))
        P = e^(mean logp),  o = log P₊/(1 − P₊) − log P₋/(1 − P₋)

    w₋ has a pole where the policy is certain of the rejected answer. w₊ has none: as P₊ → 1, σ(−o) goes to 0 like
    1 − P₊, and w₊ to (1 + λ P₋/(1 − P₋))/n₊.

    Args:
        chosen_mean_logp: log-prob a token of the chosen completion, < 0, (n,); above −1e-7 it counts as −1e-7.
        rejected_mean_logp: the same of the rejected one, (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        ratio_weight: λ, ≥ 0.

    Returns:
        Weights ≥ 0, each (n,); w₋ ≤ 1e7 λ/n₋.

    Source: Hong et al. 2024, arXiv:2403.07691, equations 6 and 7; the imitation term is a mean over the row.

    >>> import torch
    >>> half, one = torch.tensor([0.5]).log(), torch.tensor([1])
    >>> orpo(half, half, one, one, ratio_weight=0.1)
    PairWeights(chosen=tensor([1.1000]), rejected=tensor([0.1000]))
    """
    chosen, rejected = chosen_mean_logp.clamp(max=-LEAST_NATS), rejected_mean_logp.clamp(max=-LEAST_NATS)
    push = ratio_weight * (-_log_odds_ratio(chosen, rejected)).sigmoid()
    return PairWeights(
        chosen=(1 + push / -chosen.expm1()) / chosen_n_tokens,
        rejected=push / -rejected.expm1() / rejected_n_tokens,
    )


def orpo_loss(chosen_mean_logp: "Tensor", rejected_mean_logp: "Tensor", *, ratio_weight: NotNegative = 0.1) -> "Tensor":
    """−chosen_mean_logp − λ log σ(o) of each pair, (n,)."""
    chosen, rejected = chosen_mean_logp.clamp(max=-LEAST_NATS), rejected_mean_logp.clamp(max=-LEAST_NATS)
    return -chosen_mean_logp + ratio_weight * softplus(-_log_odds_ratio(chosen, rejected))


def _log_odds_ratio(chosen: "Tensor", rejected: "Tensor") -> "Tensor":
    return (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))


def slic(logp_margin: "Tensor", *, delta: Positive = 1.0, sft_weight: NotNegative = 0.1) -> PairWeights:
    """Push the answers apart until their log-probs differ by δ, and imitate the chosen one throughout.

        w₊ = 1[logp_margin < δ] + λ,  w₋ = 1[logp_margin < δ]

    Args:
        logp_margin: log π(y₊)/π(y₋), (n,).
        delta: the margin that is enough, nats, > 0.
        sft_weight: λ, ≥ 0; the paper may imitate another text than y₊.

    Returns:
        w₊ is λ or 1 + λ, w₋ 0 or 1, each (n,).

    Source: Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, with y₊ as the text that is imitated.

    >>> import torch
    >>> slic(torch.tensor([0.5, 1.5]), delta=1.0, sft_weight=0.1)
    PairWeights(chosen=tensor([1.1000, 0.1000]), rejected=tensor([1., 0.]))
    """
    close = (logp_margin < delta).to(logp_margin.dtype)
    return PairWeights(chosen=close + sft_weight, rejected=close)


def slic_loss(
    logp_margin: "Tensor", policy_chosen_logps: "Tensor", *, delta: Positive = 1.0, sft_weight: NotNegative = 0.1
) -> "Tensor":
    """max(0, δ − logp_margin) − λ log π(y₊) of each pair, (n,)."""
    return (delta - logp_margin).clamp(min=0) - sft_weight * policy_chosen_logps


def rrhf(
    policy_chosen_logps: "Tensor",
    policy_rejected_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    length_power: NotNegative = 1.0,
    reduction: Literal["sum", "row_mean"] = "sum",
) -> PairWeights:
    """Imitate the chosen answer; where the rejected one is likelier a token, push the two apart as well.

        w₊ = 1[s₊ < s₋] / n₊ᵖ + sft,  w₋ = 1[s₊ < s₋] / n₋ᵖ,  s = log-prob / nᵖ

    sft is 1 for `sum`, 1/n₊ for `row_mean`.

    Args:
        policy_chosen_logps: log π(y₊), (n,).
        policy_rejected_logps: log π(y₋), (n,).
        chosen_n_tokens: n₊, (n,).
        rejected_n_tokens: n₋, (n,).
        length_power: p, ≥ 0; 1 ranks by log-prob a token, 0 by log-prob.
        reduction: what the imitation term is; `sum` as printed (equation 3: −Σ log p, not a mean). The authors' code
            takes the mean over the padded length, prompt and padding included.

    Returns:
        w₊ in (0, 2], w₋ in [0, 1], each (n,).

    Source: Yuan et al. 2023, arXiv:2304.05302, for two answers; `rrhf_group` for more.

    >>> import torch
    >>> one, four = torch.tensor([1]), torch.tensor([4])
    >>> rrhf(torch.tensor([-3.0]), torch.tensor([-4.0]), one, four)
    PairWeights(chosen=tensor([2.]), rejected=tensor([0.2500]))
    """
    chosen_divisor, rejected_divisor = _powers(policy_chosen_logps, chosen_n_tokens, rejected_n_tokens, length_power)
    gap = policy_chosen_logps / chosen_divisor - policy_rejected_logps / rejected_divisor
    wrong = (gap < 0).to(gap.dtype)
    imitated = sft(chosen_n_tokens, gap, reduction=reduction)
    return PairWeights(chosen=wrong / chosen_divisor + imitated, rejected=wrong / rejected_divisor)


def rrhf_loss(
    policy_chosen_logps: "Tensor",
    policy_rejected_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    rejected_n_tokens: "Tensor",
    *,
    length_power: NotNegative = 1.0,
    reduction: Literal["sum", "row_mean"] = "sum",
) -> "Tensor":
    """max(0, s₋ − s₊) − sft·log π(y₊) of each pair, (n,)."""
    chosen_divisor, rejected_divisor = _powers(policy_chosen_logps, chosen_n_tokens, rejected_n_tokens, length_power)
    gap = policy_chosen_logps / chosen_divisor - policy_rejected_logps / rejected_divisor
    return (-gap).clamp(min=0) - sft(chosen_n_tokens, gap, reduction=reduction) * policy_chosen_logps


def _powers(like: "Tensor", chosen: "Tensor", rejected: "Tensor", power: float) -> "tuple[Tensor, Tensor]":
    return chosen.to(like.dtype) ** power, rejected.to(like.dtype) ** power


RULES = {
    "simpo": simpo,
    "cpo": cpo,
    "cpo_hinge": cpo_hinge,
    "cpo_ipo": cpo_ipo,
    "orpo": orpo,
    "slic": slic,
    "rrhf": rrhf,
}
LOSSES = {
    "simpo": simpo_loss,
    "cpo": cpo_loss,
    "cpo_hinge": cpo_hinge_loss,
    "cpo_ipo": cpo_ipo_loss,
    "orpo": orpo_loss,
    "slic": slic_loss,
    "rrhf": rrhf_loss,
}
