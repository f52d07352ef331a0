"""The published loss of every rule, from its paper's formula over log-probs: what the rules are held against.

Written without looking at the weights: c and r are the policy's log-probs of chosen and rejected, c0 and r0 the
reference's, n and m their lengths. Parameters come from outside, so that no default is written twice.
"""

import statistics

import torch
from torch import Tensor, log, relu, sigmoid
from torch.nn.functional import logsigmoid

from rlhf_data.rules import Completions, Pairs


def published(name: str, batch: Pairs | Completions, parameters: dict, memory: dict | None = None) -> Tensor:
    """The loss of each row, (n,); `memory` is what the rule remembers, once its step has changed it."""
    return LOSSES[name](batch, **parameters, **(memory or {}))


def sides(p: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return p.policy_chosen_logps, p.policy_rejected_logps, p.ref_chosen_logps, p.ref_rejected_logps


def margin(p: Pairs) -> Tensor:
    c, r, c0, r0 = sides(p)
    return (c - c0) - (r - r0)


def mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum()


def nll(logps: Tensor, n: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """Each row's share of the negative log-likelihood."""
    return {"sum": -logps, "row_mean": -logps / n, "token_mean": -logps * weight.sum() / (weight * n).sum()}[reduction]


# Over the log-ratio margin.


def dpo(p, beta):
    return -p.preference * logsigmoid(beta * margin(p)) - (1 - p.preference) * logsigmoid(-beta * margin(p))


def cdpo(p, beta, label_smoothing):
    x = beta * margin(p)
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def robust_dpo(p, beta, label_smoothing):
    x = beta * margin(p)
    return (-(1 - label_smoothing) * logsigmoid(x) + label_smoothing * logsigmoid(-x)) / (1 - 2 * label_smoothing)


def hinge(p, beta):
    return relu(1 - beta * margin(p))


def ipo(p, tau):
    return (margin(p) - 1 / (2 * tau)) ** 2


def exo(p, beta, label_smoothing):
    model = torch.stack([logsigmoid(beta * margin(p)), logsigmoid(-beta * margin(p))])
    reader = torch.tensor([[1 - label_smoothing], [label_smoothing]], dtype=model.dtype).log()
    return (model.exp() * (model - reader)).sum(0)


def discopop(p, beta, tau):
    u = beta * margin(p)
    mixed = sigmoid(u / tau)
    return (1 - mixed) * -logsigmoid(u) + mixed * torch.exp(-u)


# With rewards and lengths.


def odpo(p, beta, offset_scale):
    return -logsigmoid(beta * margin(p) - offset_scale * log(p.margin))


def rpo_fwd_kl(p, beta, reward_scale):
    x, g = beta * margin(p), reward_scale * p.margin
    return sigmoid(x) * (logsigmoid(x) - logsigmoid(g)) + sigmoid(-x) * (logsigmoid(-x) - logsigmoid(-g))


def rpo_sq(p, beta, reward_scale):
    return (beta * margin(p) - reward_scale * p.margin) ** 2


def rdpo(p, beta, length_penalty):
    lengths = length_penalty * p.chosen_n_tokens.double() - length_penalty * p.rejected_n_tokens.double()
    return -logsigmoid(beta * margin(p) + lengths)


def mean_margin(p):
    c, r, c0, r0 = sides(p)
    return (c - c0) / p.chosen_n_tokens - (r - r0) / p.rejected_n_tokens


def dpo_norm(p, beta):
    return -logsigmoid(beta * mean_margin(p))


def ipo_avg(p, tau):
    return (mean_margin(p) - 1 / (2 * tau)) ** 2


# Each side by itself.


def apo_zero(p, beta):
    c, r, c0, r0 = sides(p)
    return -sigmoid(beta * (c - c0)) + sigmoid(beta * (r - r0)) + 1


def apo_down(p, beta):
    c, _, c0, _ = sides(p)
    return sigmoid(beta * (c - c0)) - sigmoid(beta * margin(p)) + 1


def nca(p, beta):
    c, r, c0, r0 = sides(p)
    a, d = beta * (c - c0), beta * (r - r0)
    return -logsigmoid(a) - sum(logsigmoid(-x) for x in (a, d)) / 2


def bco_pair(p, beta):
    c, r, c0, r0 = sides(p)
    return -logsigmoid(beta * (c - c0)) - logsigmoid(-(beta * (r - r0)))


def sppo_hard(p, beta):
    c, r, c0, r0 = sides(p)
    return ((c - c0) - (1 - 0.5) / beta) ** 2 + ((r - r0) - (0 - 0.5) / beta) ** 2


def dpop(p, beta, penalty):
    c, _, c0, _ = sides(p)
    return -logsigmoid(beta * (margin(p) - penalty * relu(c0 - c)))


def rpo(p, beta, sft_weight, reduction):
    imitation = nll(p.policy_chosen_logps, p.chosen_n_tokens, p.weight, reduction)
    return -logsigmoid(beta * margin(p)) + sft_weight * imitation


def fdpo_forward_kl(p, beta):
    c, r, c0, r0 = sides(p)
    return -logsigmoid(beta * -torch.exp(c0 - c) - beta * -torch.exp(r0 - r))  # f'(t) = −1/t


def fdpo_js(p, beta):
    c, r, c0, r0 = sides(p)
    return -logsigmoid(beta * (torch.log(2 * sigmoid(c - c0)) - torch.log(2 * sigmoid(r - r0))))


def fdpo_alpha(p, beta, alpha):
    c, r, c0, r0 = sides(p)
    if alpha > 1 - 1e-6:
        return -logsigmoid(beta * margin(p))
    slope = [(torch.exp((alpha - 1) * x) - 1) / (alpha - 1) for x in (c - c0, r - r0)]
    return -logsigmoid(beta * (slope[0] - slope[1]))


def wpo(p, beta, clamp):
    chosen = p.policy_chosen_logps / p.chosen_n_tokens - p.policy_chosen_mean_log_p2
    rejected = p.policy_rejected_logps / p.rejected_n_tokens - p.policy_rejected_mean_log_p2
    weight = (torch.exp(chosen) * torch.exp(rejected)).detach()
    return -(weight.clamp(max=1) if clamp == "product" else weight) * logsigmoid(beta * margin(p))


def rm(p, margin, centre):
    gap, sure = p.chosen_score - p.rejected_score, p.preference
    told = -sure * logsigmoid(gap - margin) - (1 - sure) * logsigmoid(-gap - margin)
    return told + centre * (p.chosen_score + p.rejected_score) ** 2


def rm_margin(p, scale, centre):
    return rm(p, scale * p.margin, centre)


# Without a reference.


def simpo(p, beta, gamma):
    c, r, *_ = sides(p)
    return -logsigmoid(beta * c / p.chosen_n_tokens - beta * r / p.rejected_n_tokens - gamma)


def cpo(p, beta, sft_weight, reduction):
    c, r, *_ = sides(p)
    imitation = nll(p.policy_chosen_logps, p.chosen_n_tokens, p.weight, reduction)
    return -logsigmoid(beta * c - beta * r) + sft_weight * imitation


def cpo_hinge(p, beta, sft_weight, reduction):
    c, r, *_ = sides(p)
    imitation = nll(c, p.chosen_n_tokens, p.weight, reduction)
    return relu(1 - (beta * c - beta * r)) + sft_weight * imitation


def cpo_ipo(p, tau, sft_weight, reduction):
    c, r, *_ = sides(p)
    gap = c / p.chosen_n_tokens - r / p.rejected_n_tokens
    return (gap - 1 / (2 * tau)) ** 2 + sft_weight * nll(c, p.chosen_n_tokens, p.weight, reduction)


def orpo(p, ratio_weight):
    c, r, *_ = sides(p)
    chosen, rejected = c / p.chosen_n_tokens, r / p.rejected_n_tokens
    log_odds = [x - torch.log(-torch.special.expm1(x)) for x in (chosen, rejected)]
    return -chosen - ratio_weight * logsigmoid(log_odds[0] - log_odds[1])


def slic(p, delta, sft_weight):
    c, r, *_ = sides(p)
    return relu(delta - (c - r)) - sft_weight * c


def rrhf(p, length_power, reduction):
    c, r, *_ = sides(p)
    score = c / p.chosen_n_tokens.double() ** length_power
    other = r / p.rejected_n_tokens.double() ** length_power
    return relu(other - score) + nll(c, p.chosen_n_tokens, p.weight, reduction)


# Over the batch: a row of weight k is k rows, so weights have to be whole.


def copies(weight: Tensor) -> Tensor:
    return torch.arange(len(weight)).repeat_interleave(weight.long())


def per_row(losses: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    return torch.zeros_like(weight).index_add(0, rows, losses) / weight


def aot(p, beta):
    c, r, c0, r0 = sides(p)
    rows = copies(p.weight)
    margins, order = torch.sort((c - r)[rows])
    losses = -logsigmoid(beta * (margins - torch.sort((c0 - r0)[rows]).values))
    return per_row(losses, rows[order], p.weight)


def aot_unpaired(p, beta):
    c, r, c0, r0 = sides(p)
    rows = copies(p.weight)
    chosen, order = torch.sort((c - c0)[rows])
    losses = -logsigmoid(beta * (chosen - torch.sort((r - r0)[rows]).values))
    return per_row(losses, rows[order], p.weight)


def beta_dpo(p, beta, sensitivity, threshold):
    now = beta * (1 + sensitivity * (mean(beta * margin(p), p.weight).detach() - threshold))
    return -logsigmoid(max(float(now), 0.001) * margin(p))


def beta_dpo_running(p, beta, sensitivity, momentum, threshold):
    return beta_dpo(p, beta, sensitivity, threshold)


# Completions.


def sft(b, reduction):
    return nll(b.policy_logps, b.n_tokens, b.weight, reduction)


def c_rlft(b, expert_weight, other_weight, reduction):
    value = torch.tensor([expert_weight if good else other_weight for good in b.label], dtype=torch.float64)
    row = -value * b.policy_logps
    if reduction == "sum":
        return row
    if reduction == "row_mean":
        return row / b.n_tokens / mean(value, b.weight)
    return row / mean(value * b.n_tokens, b.weight)


def rwr(b, temperature, cap):
    return -torch.exp(b.reward / temperature).clamp(max=cap) * b.policy_logps


def awr(b, temperature, cap):
    return -torch.exp((b.reward - mean(b.reward, b.weight)) / temperature).clamp(max=cap) * b.policy_logps


def vpg(b, baseline):
    return -(b.reward - baseline) * b.policy_logps


def reinforce(b):
    first, second = mean(b.reward, b.weight), mean((b.reward - mean(b.reward, b.weight)) ** 2, b.weight)
    return (first - b.reward) / second.clamp(min=1e-8) ** 0.5 * b.policy_logps


def surrogate(b, clip_low, clip_high):
    ratio = torch.exp(b.policy_logps - b.ref_logps)
    return torch.minimum(ratio * b.reward, torch.clip(ratio, 1 - clip_low, 1 + clip_high) * b.reward)


def ppo(b, clip_low, clip_high):
    return -surrogate(b, clip_low, clip_high)


def ppo_dual_clip(b, clip_low, clip_high, clip_bad):
    clipped = surrogate(b, clip_low, clip_high)
    return -torch.where(b.reward < 0, torch.maximum(clipped, clip_bad * b.reward), clipped)


def apa(b, temperature):
    return (b.policy_logps - b.reward / temperature - b.ref_logps) ** 2


def cispo(b, clip_low, clip_high):
    ratio = torch.exp(b.policy_logps - b.ref_logps).detach()
    return -torch.clip(ratio, 1 - clip_low, 1 + clip_high) * b.reward * b.policy_logps


def k3(b, coefficient):
    return coefficient * (torch.expm1(b.ref_logps - b.policy_logps) - (b.ref_logps - b.policy_logps))


def sppo(b, beta):
    return (b.policy_logps - b.ref_logps - (b.reward - 0.5) / beta) ** 2


def bco(b, beta, desirable_weight, undesirable_weight, delta, seen):
    reward = beta * (b.policy_logps - b.ref_logps) - delta
    return torch.where(b.label, -desirable_weight * logsigmoid(reward), -undesirable_weight * logsigmoid(-reward))


def kto(b, beta, desirable_weight, undesirable_weight):
    reward = b.policy_logps - b.ref_logps
    kl = relu(mean(b.policy_mismatched_logps - b.ref_mismatched_logps, b.weight)).detach()
    return torch.where(
        b.label,
        desirable_weight * (1 - sigmoid(beta * (reward - kl))),
        undesirable_weight * (1 - sigmoid(beta * (kl - reward))),
    )


def apo_zero_unpaired(b, beta, desirable_weight, undesirable_weight):
    reward = beta * (b.policy_logps - b.ref_logps)
    return torch.where(b.label, desirable_weight * (1 - sigmoid(reward)), undesirable_weight * sigmoid(reward))


# Token by token: loops over rows, so that nothing is shared with the flat form.


def rows_of(values: Tensor, row: Tensor, n: int) -> list[Tensor]:
    return [values[row == i] for i in range(n)]


def tokens_of(b, *names: str) -> list[tuple[Tensor, ...]]:
    """The token values of each row, one tuple a row."""
    side = next((s for s in ("chosen_", "rejected_") if s in names[0]), "")
    row = getattr(b, f"{side}token_row")
    return list(zip(*(rows_of(getattr(b, name), row, len(b.weight)) for name in names), strict=True))


def log_complement(logps: Tensor) -> Tensor:
    return torch.log(-torch.special.expm1(logps))


def share(b, reduction: str) -> list[float]:
    """What a row's summed loss is multiplied by."""
    mean_length = float((b.weight * b.n_tokens).sum() / b.weight.sum())
    return [{"sum": 1.0, "row_mean": 1 / int(n), "token_mean": 1 / mean_length}[reduction] for n in b.n_tokens]


def unlikelihood(p, coefficient):
    chosen = [-lp.sum() for (lp,) in tokens_of(p, "policy_chosen_token_logps")]
    rejected = [log_complement(lp).sum() for (lp,) in tokens_of(p, "policy_rejected_token_logps")]
    return torch.stack([c - coefficient * r for c, r in zip(chosen, rejected, strict=True)])


def unlikelihood_unpaired(b, coefficient):
    tokens = tokens_of(b, "policy_token_logps")
    return torch.stack(
        [
            -lp.sum() if good else -coefficient * log_complement(lp).sum()
            for (lp,), good in zip(tokens, b.label, strict=True)
        ]
    )


def dft(b, reduction):
    tokens = zip(tokens_of(b, "policy_token_logps"), share(b, reduction), strict=True)
    return torch.stack([-k * (lp.exp().detach() * lp).sum() for (lp,), k in tokens])


def ppo_token(b, clip_low, clip_high, reduction):
    tokens = zip(tokens_of(b, "policy_token_logps", "old_token_logps"), b.reward, share(b, reduction), strict=True)
    return torch.stack([k * clipped_tokens(lp - old, a, clip_low, clip_high).sum() for (lp, old), a, k in tokens])


def clipped_tokens(log_ratio, advantage, low, high):
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, torch.clip(ratio, 1 - low, 1 + high) * advantage)


def apa_token(b, temperature, reduction):
    tokens = zip(tokens_of(b, "policy_token_logps", "old_token_logps"), b.reward, share(b, reduction), strict=True)
    return torch.stack([k * ((lp - old - a / temperature) ** 2).sum() for (lp, old), a, k in tokens])


def ld_dpo(p, beta, alpha):
    losses = []
    for (c, c0), (r, r0) in zip(
        tokens_of(p, "policy_chosen_token_logps", "ref_chosen_token_logps"),
        tokens_of(p, "policy_rejected_token_logps", "ref_rejected_token_logps"),
        strict=True,
    ):
        n = min(len(c), len(r))
        logp = [x[:n].sum() + alpha * x[n:].sum() for x in (c, r, c0, r0)]
        losses.append(-logsigmoid(beta * ((logp[0] - logp[2]) - (logp[1] - logp[3]))))
    return torch.stack(losses)


# Over the answers to one prompt: loops over groups; an answer of weight 0 is not there.


def others(b, i: int, *, itself: bool) -> list[int]:
    rows = range(len(b.weight))
    return [j for j in rows if b.group[j] == b.group[i] and b.weight[j] > 0 and (itself or j != i)]


def rloo(b):
    losses = []
    for i, logp in enumerate(b.policy_logps):
        rest = [float(b.reward[j]) for j in others(b, i, itself=False)]
        losses.append(-(float(b.reward[i]) - sum(rest) / len(rest) if rest else 0.0) * logp)
    return torch.stack(losses)


def best_share(b, i: int) -> float:
    rewards = [float(b.reward[j]) for j in others(b, i, itself=True)]
    first = rewards and float(b.reward[i]) == max(rewards) and b.weight[i] > 0
    return 1 / rewards.count(max(rewards)) if first else 0.0


def raft(b):
    return torch.stack([-best_share(b, i) * logp for i, logp in enumerate(b.policy_logps)])


def rrhf_group(b, length_power, rank_weight, reduction):
    score = b.policy_logps / b.n_tokens.double() ** length_power
    losses = []
    for i, logp in enumerate(b.policy_logps):
        worse = [j for j in others(b, i, itself=False) if b.reward[j] < b.reward[i] and b.weight[i] > 0]
        ranked = sum((relu(score[j] - score[i]) for j in worse), torch.zeros((), dtype=logp.dtype))
        imitated = best_share(b, i) * logp / {"sum": 1, "row_mean": int(b.n_tokens[i])}[reduction]
        losses.append(rank_weight * ranked - imitated)
    return torch.stack(losses)


def advantage_of(b, i: int, spread: str, epsilon: float, single: str) -> float:
    rewards = [float(b.reward[j]) for j in others(b, i, itself=True)]
    if len(rewards) < 2:
        return float(b.reward[i]) if single == "reward" else 0.0
    centred = float(b.reward[i]) - statistics.fmean(rewards)
    if spread == "none":
        return centred
    deviation = statistics.stdev(rewards) if spread == "sample" else statistics.pstdev(rewards)
    return centred / (deviation + epsilon)


def grpo_with(b, log_ratio, kl_ratio, values):
    shares = share(b, values["reduction"])
    losses = []
    for i, k in enumerate(shares):
        a = advantage_of(b, i, values["spread"], values["epsilon"], values["single"])
        clipped = clipped_tokens(
            log_ratio[i], torch.tensor(a, dtype=torch.float64), values["clip_low"], values["clip_high"]
        )
        divergence = torch.expm1(-kl_ratio[i]) + kl_ratio[i]
        losses.append(k * (clipped + values["kl_weight"] * divergence).sum())
    return torch.stack(losses)


def grpo(b, **values):
    return grpo_with(b, b.policy_logps - b.ref_logps, b.policy_logps - b.ref_logps, values)


def grpo_old(b, **values):
    return grpo_with(b, b.policy_logps - b.old_logps, b.policy_logps - b.ref_logps, values)


def grpo_token(b, **values):
    tokens = tokens_of(b, "policy_token_logps", "old_token_logps", "ref_token_logps")
    return grpo_with(b, [lp - old for lp, old, _ in tokens], [lp - ref for lp, _, ref in tokens], values)


# The page "Unifying RLHF Objectives", which gives gradients: each loss is the page's weight, integrated.


def seed_ppo(b, clip):
    ratio = torch.exp(b.policy_logps - b.ref_logps)
    return -torch.where(ratio < 1 + clip, ratio, 1 + clip) * b.reward


def seed_kto(b):
    x = b.reward - mean(b.policy_logps - b.ref_logps, b.weight)
    return -(sigmoid(x) * sigmoid(-x)).detach() * b.policy_logps


def seed_rrhf(p, beta):
    c, r, *_ = sides(p)
    return -c + relu(log(torch.tensor(beta, dtype=c.dtype)) - (c - r))


def against_old(b: Completions) -> Completions:
    return Completions(**(vars(b) | {"ref_logps": b.old_logps}))


LOSSES = {
    **{
        f.__name__: f
        for f in (fdpo_alpha, wpo, rm, rm_margin, cpo_hinge, cpo_ipo, beta_dpo_running, cispo, k3, sppo, bco)
    },
    **{f.__name__: f for f in (unlikelihood, unlikelihood_unpaired, dft, ppo_token, apa_token, ld_dpo)},
    **{f.__name__: f for f in (rloo, raft, rrhf_group, grpo, grpo_old, grpo_token)},
    "ppo_old": lambda b, **values: ppo(against_old(b), **values),
    "apa_old": lambda b, **values: apa(against_old(b), **values),
    "dpo": dpo,
    "cdpo": cdpo,
    "robust_dpo": robust_dpo,
    "hinge": hinge,
    "ipo": ipo,
    "exo": exo,
    "discopop": discopop,
    "odpo": odpo,
    "rpo_fwd_kl": rpo_fwd_kl,
    "rpo_sq": rpo_sq,
    "rdpo": rdpo,
    "dpo_norm": dpo_norm,
    "ipo_avg": ipo_avg,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "nca": nca,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "dpop": dpop,
    "rpo": rpo,
    "fdpo_forward_kl": fdpo_forward_kl,
    "fdpo_js": fdpo_js,
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
    "slic": slic,
    "rrhf": rrhf,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "beta_dpo": beta_dpo,
    "sft": sft,
    "c_rlft": c_rlft,
    "rwr": rwr,
    "awr": awr,
    "vpg": vpg,
    "reinforce": reinforce,
    "ppo": ppo,
    "ppo_dual_clip": ppo_dual_clip,
    "apa": apa,
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "seed.sft": lambda b: -b.policy_logps,
    "seed.c_rlft": lambda p: -p.policy_chosen_logps - 0.1 * p.policy_rejected_logps,
    "seed.vpg": lambda b: -b.policy_logps * b.reward,
    "seed.ppo": seed_ppo,
    "seed.apa": lambda b: 0.5 * (b.policy_logps - b.ref_logps - b.reward) ** 2,
    "seed.kto": seed_kto,
    "seed.unlikelihood": lambda p: p.policy_rejected_logps - p.policy_chosen_logps,
    "seed.rm": lambda p: -logsigmoid(p.policy_chosen_logps - p.policy_rejected_logps),
    "seed.dpo": lambda p: -logsigmoid(margin(p)),
    "seed.rrhf": seed_rrhf,
}
