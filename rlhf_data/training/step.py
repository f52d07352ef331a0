"""One optimizer step's gradients, in as many forwards as fit a token budget, as if it were one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs, PairTokenWeights, PairWeights, Rule, TokenWeights
from rlhf_data.scoring.logprobs import token_logps, token_logps_and_squares
from rlhf_data.scoring.packs import Group, Layout, plan, size
from rlhf_data.scoring.rewards import sequence_scores, whole
from rlhf_data.training.batches import Rows
from rlhf_data.training.loss import Weights, weighted_loss


@dataclass(frozen=True)
class Policy:
    """A model with the way its batches are laid out; `scores` where it has a scalar head and gives no log-probs."""

    model: PreTrainedModel
    layout: Layout
    token_budget: int
    scores: bool = False


class Step(NamedTuple):
    """A step that has been accumulated: its batch and weights, detached; tokens run; what the rule remembers now."""

    batch: Pairs | Completions
    weights: Weights
    tokens: int
    memory: dict[str, float]


class Measured(NamedTuple):
    """What a forward gives of some rows: the log-probs of each completion's tokens, and means of log Σ p².

    `tokens` has, for each row, one (n_tokens,) a completion, float64; `mean_log_p2` is (rows, completions), or None
    where the rule does not ask for it.
    """

    tokens: list[list[Tensor]]
    mean_log_p2: Tensor | None = None

    @property
    def logps(self) -> Tensor:
        """Summed log-probs, nats, (rows, completions)."""
        # float64: a difference of two sums of hundreds of nats keeps its digits.
        return torch.stack([torch.stack([one.sum() for one in row]) for row in self.tokens])


def accumulate(
    policy: Policy,
    rows: Rows,
    picked: Sequence[int],
    rule: Rule,
    parameters: dict[str, Any],
    memory: dict[str, float] | None = None,
) -> Step:
    """Add the gradient of `weighted_loss` over the rows `picked` to the model's.

    A rule that averages over its batch, or remembers, sees the whole step: where that takes several forwards, its
    weights come from a first pass without gradients. Rows of the step's batch stand in the order of `picked`.
    """
    weigh = rules.rule(rule, **parameters)
    groups = [rows.groups[i] for i in picked]
    parts = plan(_run(policy, groups), policy.token_budget, policy.layout)
    mismatched = sequence_logps(policy, [rows.mismatched[i] for i in picked])[:, 0] if rows.mismatched else None
    normaliser = float(sum(rows.columns["weight"][i] for i in picked))
    by_token = rules.weighs_tokens(rule)
    squares = any(need.endswith("mean_log_p2") for need in rules.needs(rule))

    def batch_of(at: Sequence[int], measured: Measured) -> Pairs | Completions:
        part = None if mismatched is None else mismatched[list(at)]
        values = measured if by_token or squares else None
        return batch(rows, [picked[i] for i in at], measured.logps, part, values, scores=policy.scores)

    whole = range(len(picked))
    weights: Weights | None = None
    if rules.is_static(rule) and not by_token:
        weights = weigh(batch_of(whole, _unmeasured(groups, policy.model.device)))
    elif len(parts) > 1 and (rules.averages_over_batch(rule) or rules.memory(rule)):
        step = batch_of(whole, _without_gradients(policy, groups, parts, squares))
        memory = rules.remember(rule, step, memory or {}, **parameters)
        weights = weigh(step, memory)

    tokens: list[list[Tensor]] = [[] for _ in picked]
    mean_log_p2 = torch.zeros((len(picked), len(groups[0].completions)), dtype=torch.float64)
    for part in parts:
        live = _forward(policy, [groups[i] for i in part], squares)
        part_batch = batch_of(part, live)
        if weights is None and rules.memory(rule):
            memory = rules.remember(rule, part_batch, memory or {}, **parameters)
        part_weights = weigh(part_batch, memory) if weights is None else _take(weights, part, groups)
        weighted_loss(part_batch, part_weights, normaliser=normaliser).backward()
        for at, i in enumerate(part):
            tokens[i] = [one.detach() for one in live.tokens[at]]
        if live.mean_log_p2 is not None:
            mean_log_p2[part] = live.mean_log_p2.to(mean_log_p2.device)
    step = batch_of(whole, Measured(tokens, mean_log_p2.to(policy.model.device) if squares else None))
    ran = sum(size(group, policy.layout) for group in _run(policy, groups))
    return Step(step, weigh(step, memory) if weights is None else weights, ran, dict(memory or {}))


@torch.no_grad()
def sequence_logps(policy: Policy, groups: Sequence[Group]) -> Tensor:
    """Summed log-probs, nats, float64, without gradients, or scores of a head: (groups, completions of each)."""
    parts = plan(_run(policy, groups), policy.token_budget, policy.layout)
    return _without_gradients(policy, groups, parts, False).logps


@torch.no_grad()
def _without_gradients(
    policy: Policy, groups: Sequence[Group], parts: Sequence[Sequence[int]], squares: bool
) -> Measured:
    tokens: list[list[Tensor]] = [[] for _ in groups]
    means: list[Tensor] = [torch.zeros(0)] * len(groups)
    for part in parts:
        measured = _forward(policy, [groups[i] for i in part], squares)
        for at, i in enumerate(part):
            tokens[i] = measured.tokens[at]
            means[i] = means[i] if measured.mean_log_p2 is None else measured.mean_log_p2[at]
    return Measured(tokens, torch.stack(means) if squares else None)


def _run(policy: Policy, groups: Sequence[Group]) -> Sequence[Group]:
    """The groups with all the tokens that run: a score is read at a completion's last token, a log-prob before it."""
    return whole(groups) if policy.scores else groups


def _forward(policy: Policy, groups: Sequence[Group], squares: bool) -> Measured:
    if policy.scores:
        scores = sequence_scores(policy.model, groups, policy.layout)
        return Measured([[score.double().reshape(1) for score in group] for group in scores])
    if not squares:
        return Measured(_doubles(token_logps(policy.model, groups, policy.layout)))
    logps, log_p2 = token_logps_and_squares(policy.model, groups, policy.layout)
    means = torch.stack([torch.stack([one.double().mean() for one in group]) for group in log_p2])
    return Measured(_doubles(logps), means.detach())


def batch(
    rows: Rows,
    picked: Sequence[int],
    logps: Tensor,
    mismatched: Tensor | None,
    measured: Measured | None = None,
    *,
    scores: bool = False,
) -> Pairs | Completions:
    """The rows `picked` as a rule sees them.

    Args:
        rows: what is known before the forward.
        picked: which of them.
        logps: (n, 2) of pairs, (n, 1) of completions.
        mismatched: (n,), of another prompt's completion, where the rule wants it.
        measured: of the same forward as `logps`, where the rule wants tokens or sums over the vocabulary.
        scores: whether `logps` are the scores of a reward head, which then stand in both places: they are pushed.
    """
    fields: dict[str, Tensor] = {
        name: torch.tensor([rows.columns[name][i] for i in picked], device=logps.device, dtype=dtype)
        for name, dtype in _FIELDS.items()
        if name in rows.columns
    }
    lengths = [[len(completion) for completion in rows.groups[i].completions] for i in picked]
    n_tokens = torch.tensor(lengths, device=logps.device)
    sides = ("chosen_", "rejected_") if logps.shape[1] == 2 else ("",)
    for column, side in enumerate(sides):
        if measured is not None:
            fields |= _token_fields(rows, picked, measured, column, side, n_tokens[:, column])
    if scores:
        fields |= {"chosen_score": logps[:, 0], "rejected_score": logps[:, 1]}
    if logps.shape[1] == 2:
        return Pairs(
            policy_chosen_logps=logps[:, 0],
            policy_rejected_logps=logps[:, 1],
            chosen_n_tokens=n_tokens[:, 0],
            rejected_n_tokens=n_tokens[:, 1],
            **fields,
        )
    if "prompt_id" in rows.columns:
        numbers: dict[str, int] = {}
        group = [numbers.setdefault(rows.columns["prompt_id"][i], len(numbers)) for i in picked]
        fields["group"] = torch.tensor(group, device=logps.device)
    return Completions(
        policy_logps=logps[:, 0],
        n_tokens=n_tokens[:, 0],
        policy_mismatched_logps=mismatched,
        **fields,
    )


def _token_fields(
    rows: Rows, picked: Sequence[int], measured: Measured, column: int, side: str, n_tokens: Tensor
) -> dict[str, Tensor]:
    """The flat token values of one side, and its means over the vocabulary."""
    live = torch.cat([row[column] for row in measured.tokens])
    row = torch.arange(len(picked), device=live.device).repeat_interleave(n_tokens)
    fields = {f"policy_{side}token_logps": live, f"{side}token_row": row}
    for name in (f"ref_{side}token_logps", f"old_{side}token_logps"):
        if name in rows.columns:
            stored = [value for i in picked for value in rows.columns[name][i]]
            fields[name] = torch.tensor(stored, dtype=torch.float64, device=live.device)
    if measured.mean_log_p2 is not None and side:
        fields[f"policy_{side}mean_log_p2"] = measured.mean_log_p2[:, column]
    return fields


_FIELDS: dict[str, torch.dtype] = {
    "weight": torch.float64,
    "preference": torch.float64,
    "margin": torch.float64,
    "reward": torch.float64,
    "label": torch.bool,
    "ref_chosen_logps": torch.float64,
    "ref_rejected_logps": torch.float64,
    "ref_logps": torch.float64,
    "ref_mismatched_logps": torch.float64,
    "old_logps": torch.float64,
}


def _doubles(logps: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[one.double() for one in group] for group in logps]


def _unmeasured(groups: Sequence[Group], device: torch.device) -> Measured:
    """Zeros in the place of log-probs, for rules that read none."""
    return Measured([[torch.zeros(1, dtype=torch.float64, device=device) for _ in g.completions] for g in groups])


def _take(weights: Weights, at: list[int], groups: Sequence[Group]) -> Weights:
    """The weights of some rows of a step, `groups` being all of them."""
    if isinstance(weights, PairWeights):
        return PairWeights(weights.chosen[at], weights.rejected[at])
    if isinstance(weights, PairTokenWeights):
        return PairTokenWeights(*(_take_tokens(side, at, groups, column) for column, side in enumerate(weights)))
    if isinstance(weights, TokenWeights):
        return TokenWeights(_take_tokens(weights.tokens, at, groups, 0))
    return weights[at]


def _take_tokens(values: Tensor, at: list[int], groups: Sequence[Group], column: int) -> Tensor:
    rows = values.split([len(group.completions[column]) for group in groups])
    return torch.cat([rows[i] for i in at])
