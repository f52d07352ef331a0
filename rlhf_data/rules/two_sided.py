"""Rules over preferences that look at each completion's own log-ratio: w₊ and w₋ part."""

from typing import TYPE_CHECKING

from rlhf_data.rules.batch import NotNegative, PairWeights, Positive, Share
from rlhf_data.rules.stable import bounded_exp, slope, softplus
from rlhf_data.rules.supervised import Reduction, sft

if TYPE_CHECKING:
    from torch import Tensor


def apo_zero(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Pull the chosen answer up and the rejected one down, each on its own: for answers better than the model's.

        w₊ = β σ'(β · chosen_log_ratio),  w₋ = β σ'(β · rejected_log_ratio)

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        Weights in (0, β/4], each (n,).

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7.

    >>> import torch
    >>> apo_zero(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0250])
    """
    return PairWeights(chosen=beta * slope(beta * chosen_log_ratio), rejected=beta * slope(beta * rejected_log_ratio))


def apo_zero_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """σ(−β·chosen_log_ratio) + σ(β·rejected_log_ratio) of each pair, (n,)."""
    return (-beta * chosen_log_ratio).sigmoid() + (beta * rejected_log_ratio).sigmoid()


def apo_down(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Push both answers down, the rejected one further: for answers worse than the model's.

        w₊ = β (σ'(β·margin) − σ'(β · chosen_log_ratio)),  w₋ = β σ'(β·margin)

    margin = chosen_log_ratio − rejected_log_ratio; w₊ is negative wherever the chosen answer is nearer to its
    reference than the pair is to a tie.

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        Weights in [−β/4, β/4], each (n,).

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8.

    >>> import torch
    >>> apo_down(torch.zeros(1), torch.zeros(1), beta=0.1)
    PairWeights(chosen=tensor([0.]), rejected=tensor([0.0250]))
    """
    apart = beta * slope(beta * (chosen_log_ratio - rejected_log_ratio))
    return PairWeights(chosen=apart - beta * slope(beta * chosen_log_ratio), rejected=apart)


def apo_down_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """σ(β·chosen_log_ratio) + σ(−β·margin) of each pair, (n,)."""
    return (beta * chosen_log_ratio).sigmoid() + (-beta * (chosen_log_ratio - rejected_log_ratio)).sigmoid()


def nca(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Noise contrast: raise the chosen answer's own likelihood, not only its lead.

        w₊ = β (σ(−β · chosen_log_ratio) − σ(β · chosen_log_ratio)/2),  w₋ = β σ(β · rejected_log_ratio)/2

    The chosen answer settles at log-ratio ln 2/β.

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        w₊ in (−β/2, β), w₋ in (0, β/2), each (n,).

    Source: Chen et al. 2024, arXiv:2402.05369, NCA for two answers.

    >>> import torch
    >>> nca(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0250])
    """
    a = beta * chosen_log_ratio
    return PairWeights(
        chosen=beta * ((-a).sigmoid() - a.sigmoid() / 2), rejected=beta * (beta * rejected_log_ratio).sigmoid() / 2
    )


def nca_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−log σ(a) − ½ log σ(−a) − ½ log σ(−d) of each pair, (n,); a and d are β times the log-ratios."""
    a = beta * chosen_log_ratio
    return softplus(-a) + softplus(a) / 2 + softplus(beta * rejected_log_ratio) / 2


def bco_pair(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """Classify each answer by its own implicit reward, with 0 as the border.

        w₊ = β σ(−β · chosen_log_ratio),  w₋ = β σ(β · rejected_log_ratio)

    The paper's border δ is a running mean of the rewards; here it is 0, as in TRL's `bco_pair`.

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        Weights in (0, β), each (n,).

    Source: Jung et al. 2024, arXiv:2404.04656, with δ = 0.

    >>> import torch
    >>> bco_pair(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0500])
    """
    return PairWeights(
        chosen=beta * (-beta * chosen_log_ratio).sigmoid(), rejected=beta * (beta * rejected_log_ratio).sigmoid()
    )


def bco_pair_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−log σ(β·chosen_log_ratio) − log σ(−β·rejected_log_ratio) of each pair, (n,)."""
    return softplus(-beta * chosen_log_ratio) + softplus(beta * rejected_log_ratio)


def sppo_hard(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.001) -> PairWeights:
    """Regress each log-ratio on its place in the game: 1/(2β) for the winner, −1/(2β) for the loser.

        w₊ = 2 (1/(2β) − chosen_log_ratio),  w₋ = 2 (1/(2β) + rejected_log_ratio)

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: 1/η of the paper, > 0; the target is 500 nats at 0.001.

    Returns:
        Weights of either sign, each (n,).

    Source: Wu et al. 2024, arXiv:2405.00675, with win probabilities 1 and 0.

    >>> import torch
    >>> sppo_hard(torch.tensor([1.0]), torch.tensor([1.0]), beta=0.1)
    PairWeights(chosen=tensor([8.]), rejected=tensor([12.]))
    """
    return PairWeights(chosen=1 / beta - 2 * chosen_log_ratio, rejected=1 / beta + 2 * rejected_log_ratio)


def sppo_hard_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.001) -> "Tensor":
    """(chosen_log_ratio − 1/(2β))² + (rejected_log_ratio + 1/(2β))² of each pair, (n,)."""
    return (chosen_log_ratio - 1 / (2 * beta)) ** 2 + (rejected_log_ratio + 1 / (2 * beta)) ** 2


def dpop(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1, penalty: NotNegative = 50.0
) -> PairWeights:
    """DPO that may not lower the chosen answer to win.

        w₊ = β σ(−u) (1 + λ 1[chosen_log_ratio < 0]),  w₋ = β σ(−u)
        u = β (chosen_log_ratio − rejected_log_ratio − λ max(0, −chosen_log_ratio))

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.
        penalty: λ, ≥ 0; 0 is DPO.

    Returns:
        w₊ in (0, β(1 + λ)), w₋ in (0, β), each (n,).

    Source: Pal et al. 2024, DPO-positive, arXiv:2402.13228.

    >>> import torch
    >>> dpop(torch.tensor([-1.0]), torch.tensor([-51.0]), beta=0.1, penalty=50.0)
    PairWeights(chosen=tensor([2.5500]), rejected=tensor([0.0500]))
    """
    push = beta * (-_dpop_reward_gap(chosen_log_ratio, rejected_log_ratio, beta, penalty)).sigmoid()
    return PairWeights(chosen=push * (1 + penalty * (chosen_log_ratio < 0).to(push.dtype)), rejected=push)


def dpop_loss(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1, penalty: NotNegative = 50.0
) -> "Tensor":
    """−log σ(u) of each pair, (n,)."""
    return softplus(-_dpop_reward_gap(chosen_log_ratio, rejected_log_ratio, beta, penalty))


def _dpop_reward_gap(a: "Tensor", d: "Tensor", beta: float, penalty: float) -> "Tensor":
    return beta * (a - d - penalty * (-a).clamp(min=0))


def rpo(
    log_ratio_margin: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "row_mean",
) -> PairWeights:
    """DPO, held in place by imitating the chosen answer.

        w₊ = β σ(−β · log_ratio_margin) + α · sft,  w₋ = β σ(−β · log_ratio_margin)

    sft is 1, 1/n₊ or 1/n̄₊: the weight that the rule `sft` gives the chosen answer under the same reduction.

    Args:
        log_ratio_margin: log-ratio of chosen minus that of rejected, (n,).
        chosen_n_tokens: n₊, (n,).
        weight: what each row counts for, (n,), in a mean over tokens.
        beta: inverse temperature, > 0.
        sft_weight: α, ≥ 0; 0 is DPO.
        reduction: what the imitation term is a mean of; `row_mean` as printed, `token_mean` as in TRL.

    Returns:
        w₊ in (0, β + α], w₋ in (0, β), each (n,).

    Source: Pang et al. 2024, iterative reasoning preference optimization, arXiv:2404.19733, equation 1.

    >>> import torch
    >>> rpo(torch.zeros(1), torch.tensor([4]), torch.ones(1), beta=0.1, sft_weight=1.0)
    PairWeights(chosen=tensor([0.3000]), rejected=tensor([0.0500]))
    """
    push = beta * (-beta * log_ratio_margin).sigmoid()
    return PairWeights(push + sft_weight * sft(chosen_n_tokens, weight, reduction=reduction), push)


def rpo_loss(
    log_ratio_margin: "Tensor",
    policy_chosen_logps: "Tensor",
    chosen_n_tokens: "Tensor",
    weight: "Tensor",
    *,
    beta: Positive = 0.1,
    sft_weight: NotNegative = 1.0,
    reduction: Reduction = "row_mean",
) -> "Tensor":
    """−log σ(β·log_ratio_margin) − α·sft·log π(y₊) of each pair, (n,)."""
    imitated = sft(chosen_n_tokens, weight, reduction=reduction) * policy_chosen_logps
    return softplus(-beta * log_ratio_margin) - sft_weight * imitated


def fdpo_forward_kl(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """DPO under the forward KL: answers that the policy has all but lost are pulled back hardest.

        w₊ = β σ(−βF) e^(−chosen_log_ratio),  w₋ = β σ(−βF) e^(−rejected_log_ratio)
        F = e^(−rejected_log_ratio) − e^(−chosen_log_ratio)

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,); below −60 it counts as −60.
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        Weights ≥ 0, each (n,).

    Source: Wang et al. 2023, f-DPO, arXiv:2309.16240, with f(t) = −log t, f'(t) = −1/t.

    >>> import torch
    >>> fdpo_forward_kl(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0500])
    """
    chosen, rejected = bounded_exp(-chosen_log_ratio), bounded_exp(-rejected_log_ratio)
    push = beta * (-beta * (rejected - chosen)).sigmoid()
    return PairWeights(chosen=push * chosen, rejected=push * rejected)


def fdpo_forward_kl_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−log σ(βF) of each pair, (n,)."""
    return softplus(beta * (bounded_exp(-chosen_log_ratio) - bounded_exp(-rejected_log_ratio)))


def fdpo_js(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> PairWeights:
    """DPO under the Jensen–Shannon divergence: an answer far above its reference is hardly pushed any more.

        w₊ = β σ(−βF) σ(−chosen_log_ratio),  w₋ = β σ(−βF) σ(−rejected_log_ratio)
        F = log σ(chosen_log_ratio) − log σ(rejected_log_ratio)

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,).
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.

    Returns:
        Weights in [0, β), each (n,).

    Source: Wang et al. 2023, f-DPO, arXiv:2309.16240, with f'(t) = log(2t/(1 + t)).

    >>> import torch
    >>> fdpo_js(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0250])
    """
    push = beta * (beta * (softplus(-chosen_log_ratio) - softplus(-rejected_log_ratio))).sigmoid()
    return PairWeights(chosen=push * (-chosen_log_ratio).sigmoid(), rejected=push * (-rejected_log_ratio).sigmoid())


def fdpo_js_loss(chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1) -> "Tensor":
    """−log σ(βF) of each pair, (n,)."""
    return softplus(beta * (softplus(-chosen_log_ratio) - softplus(-rejected_log_ratio)))


def fdpo_alpha(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1, alpha: Share = 0.5
) -> PairWeights:
    """DPO under an α-divergence: between the forward KL (α = 0) and the reverse one (α → 1, which is DPO).

        w₊ = β σ(−βF) e^((α − 1) chosen_log_ratio),  w₋ = β σ(−βF) e^((α − 1) rejected_log_ratio)
        F = (e^((α − 1) chosen_log_ratio) − e^((α − 1) rejected_log_ratio))/(α − 1)

    Args:
        chosen_log_ratio: log π/π_ref of the chosen completion, (n,); (α − 1) times it counts as at most 60.
        rejected_log_ratio: the same of the rejected one, (n,).
        beta: inverse temperature, > 0.
        alpha: α, in [0, 1]; above 1 − 1e-6 it is DPO.

    Returns:
        Weights ≥ 0, each (n,).

    Source: Wang et al. 2023, f-DPO, arXiv:2309.16240, with f'(t) = (t^(α − 1) − 1)/(α − 1) up to a constant, as in TRL.

    >>> import torch
    >>> fdpo_alpha(torch.zeros(1), torch.zeros(1), beta=0.1).chosen
    tensor([0.0500])
    """
    chosen, rejected, gap = _alpha_gap(chosen_log_ratio, rejected_log_ratio, alpha)
    push = beta * (-beta * gap).sigmoid()
    return PairWeights(chosen=push * chosen, rejected=push * rejected)


def fdpo_alpha_loss(
    chosen_log_ratio: "Tensor", rejected_log_ratio: "Tensor", *, beta: Positive = 0.1, alpha: Share = 0.5
) -> "Tensor":
    """−log σ(βF) of each pair, (n,)."""
    return softplus(-beta * _alpha_gap(chosen_log_ratio, rejected_log_ratio, alpha)[2])


def _alpha_gap(a: "Tensor", d: "Tensor", alpha: float) -> "tuple[Tensor, Tensor, Tensor]":
    if alpha > 1 - 1e-6:
        return a.new_ones(a.shape), d.new_ones(d.shape), a - d
    chosen, rejected = bounded_exp((alpha - 1) * a), bounded_exp((alpha - 1) * d)
    return chosen, rejected, (chosen - rejected) / (alpha - 1)


RULES = {
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "nca": nca,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "dpop": dpop,
    "rpo": rpo,
    "fdpo_forward_kl": fdpo_forward_kl,
    "fdpo_js": fdpo_js,
    "fdpo_alpha": fdpo_alpha,
}
LOSSES = {
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "nca": nca_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "dpop": dpop_loss,
    "rpo": rpo_loss,
    "fdpo_forward_kl": fdpo_forward_kl_loss,
    "fdpo_js": fdpo_js_loss,
    "fdpo_alpha": fdpo_alpha_loss,
}
