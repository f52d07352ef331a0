"""One optimizer step's gradients, in as many forwards as fit a token budget, as if it were one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_data import rules
from rlhf_data.order import share
from rlhf_data.rules import Completions, Pairs, PairTokenWeights, PairWeights, Rule, TokenWeights
from rlhf_data.scoring.logprobs import grouped_attention, token_logps, token_logps_and_squares
from rlhf_data.scoring.packs import Group, Layout, plan, size
from rlhf_data.scoring.rewards import sequence_scores, whole
from rlhf_data.training.batches import Rows
from rlhf_data.training.loss import Weights, weighted_loss
from rlhf_data.training.ranks import ALONE, Ranks, gathered


@dataclass(frozen=True)
class Policy:
    """A model with the way its batches are laid out and run.

    Attributes:
        model: the model; with a method `measure`, of `sharding.shard`, where its parameters are divided.
        layout: how its batches are laid out.
        token_budget: most tokens of a forward.
        dtype: of matrix products; the parameters are what they are.
        ranks: who runs the rows of a step together.
        sharded: whether the ranks hold a share of the parameters each.
        adapter: peft's hold on the model, where an adapter is what is trained.
        scores: whether it has a scalar head, and gives scores in place of log-probs.
    """

    model: PreTrainedModel
    layout: Layout
    token_budget: int
    dtype: torch.dtype = torch.float32
    ranks: Ranks = ALONE
    sharded: bool = False
    adapter: Any = None
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

    def detached(self) -> "Measured":
        """The same numbers without their graph."""
        return Measured([[one.detach() for one in row] for row in self.tokens], self.mean_log_p2)


class Work(NamedTuple):
    """Who runs which rows of a step, and this rank's forwards, as positions in the step.

    `shares` has the rows of every rank, in the order in which it tells their values. An empty forward keeps step with
    the ranks that have more: of a sharded model, all ranks must run together. `single` says that no rank runs two.
    """

    shares: list[list[int]]
    forwards: list[list[int]]
    single: bool


def accumulate(
    policy: Policy,
    rows: Rows,
    picked: Sequence[int],
    rule: Rule,
    parameters: dict[str, Any],
    memory: dict[str, float] | None = None,
    *,
    coefficient: float = 1.0,
) -> Step:
    """Add the gradient of `weighted_loss` over the rows `picked`, times `coefficient`, to the model's.

    Of several ranks, each adds that of its share of the rows, divided by the weight of all: the step's gradient is the
    sum over ranks, which a sharded model has formed when this returns and `ranks.sum_gradients` forms of any other.

    A rule that averages over its batch, or remembers, sees the whole step: where that takes several forwards, its
    weights come from a first pass without gradients. Rows of the step's batch stand in the order of `picked`.
    """
    weigh = rules.rule(rule, **parameters)
    groups = [rows.groups[i] for i in picked]
    work = divide(policy, groups)
    mismatched = sequence_logps(policy, [rows.mismatched[i] for i in picked])[:, 0] if rows.mismatched else None
    normaliser = float(sum(rows.columns["weight"][i] for i in picked)) / coefficient
    if policy.sharded:
        normaliser /= policy.ranks.world  # FSDP takes the mean over ranks
    by_token = rules.weighs_tokens(rule)
    squares = any(need.endswith("mean_log_p2") for need in rules.needs(rule))

    def batch_of(at: Sequence[int], measured: Measured) -> Pairs | Completions:
        part = None if mismatched is None else mismatched[list(at)]
        values = measured if by_token or squares else None
        return batch(rows, [picked[i] for i in at], measured.logps, part, values, scores=policy.scores)

    whole = range(len(picked))
    held: list[Measured] = []
    step: Pairs | Completions | None = None
    weights: Weights | None = None
    if rules.is_static(rule) and not by_token:
        weights = weigh(batch_of(whole, _unmeasured(groups, policy.model.device)))
    elif rules.averages_over_batch(rule) or rules.memory(rule):
        if work.single:  # the graph of the only forward is kept until the weights are known
            held = [_forward(policy, _of(groups, part), squares) for part in work.forwards]
            measured = _told(policy, groups, work, held, squares)
        else:
            measured = _without_gradients(policy, groups, work, squares)
        step = batch_of(whole, measured)
        memory = rules.remember(rule, step, memory or {}, **parameters)
        weights = weigh(step, memory)

    done: list[Measured] = []
    with grouped_attention(policy.model, policy.layout):  # layers that are run again in the backward pass need it
        for number, part in enumerate(work.forwards):
            live = held[number] if held else _forward(policy, _of(groups, part), squares)
            done.append(live.detached())
            if not part:
                (live.logps.sum() * 0).backward()
                continue
            part_batch = batch_of(part, live)
            part_weights = weigh(part_batch, memory) if weights is None else _take(weights, part, groups)
            weighted_loss(part_batch, part_weights, normaliser=normaliser).backward()
    if step is None:
        step = batch_of(whole, _told(policy, groups, work, done, squares))
    ran = sum(size(group, policy.layout) for group in _run(policy, groups))
    return Step(step, weigh(step, memory) if weights is None else weights, ran, dict(memory or {}))


def divide(policy: Policy, groups: Sequence[Group]) -> Work:
    """A step's rows among ranks and forwards; every rank finds the same."""
    world = policy.ranks.world
    groups = _run(policy, groups)
    sizes = [size(group, policy.layout) for group in groups]
    shares = [share(sizes, rank, world) for rank in range(world)]
    plans = [
        [[mine[i] for i in part] for part in plan([groups[i] for i in mine], policy.token_budget, policy.layout)]
        for mine in shares  # of more ranks than rows, some have none
    ]
    most = max(map(len, plans))
    forwards = plans[policy.ranks.rank]
    idle = most - len(forwards) if policy.sharded else 0
    order = [[i for part in parts for i in part] for parts in plans]
    return Work(order, [*forwards, *([] for _ in range(idle))], most <= 1)


@torch.no_grad()
def sequence_logps(policy: Policy, groups: Sequence[Group]) -> Tensor:
    """Summed log-probs, nats, float64, without gradients, or scores of a head: (groups, completions of each)."""
    return measured(policy, groups).logps


def measured(policy: Policy, groups: Sequence[Group]) -> Measured:
    """Log-probs of each completion's tokens, without gradients; of several ranks, each runs its share and has all."""
    return _without_gradients(policy, groups, divide(policy, groups), False)


@torch.no_grad()
def _without_gradients(policy: Policy, groups: Sequence[Group], work: Work, squares: bool) -> Measured:
    measured = [_forward(policy, _of(groups, part), squares) for part in work.forwards]
    return _told(policy, groups, work, measured, squares)


def _of(groups: Sequence[Group], part: Sequence[int]) -> list[Group]:
    """The groups of a forward; of an empty one, any group will do."""
    return [groups[i] for i in part] or list(groups[:1])


def _told(policy: Policy, groups: Sequence[Group], work: Work, measured: Sequence[Measured], squares: bool) -> Measured:
    """What all ranks measured of a step, in its order, without graph; `measured` are this rank's forwards."""
    mine = [one.detached() for part, one in zip(work.forwards, measured, strict=True) if part]
    device = policy.model.device
    tokens = [values for one in mine for row in one.tokens for values in row]
    flat = torch.cat(tokens) if tokens else torch.zeros(0, dtype=torch.float64, device=device)
    lengths = [[1 if policy.scores else len(completion) for completion in group.completions] for group in groups]
    counts = [sum(sum(lengths[i]) for i in rows) for rows in work.shares]
    whole: list[list[Tensor]] = [[] for _ in groups]
    for rows, values in zip(work.shares, gathered(flat, counts, policy.ranks), strict=True):
        each = iter(values.split([n for i in rows for n in lengths[i]]))
        for i in rows:
            whole[i] = [next(each) for _ in lengths[i]]
    if not squares:
        return Measured(whole)
    means = [one.mean_log_p2.flatten() for one in mine if one.mean_log_p2 is not None]
    sides = len(groups[0].completions)
    flat = torch.cat(means) if means else torch.zeros(0, dtype=torch.float64, device=device)
    rows_of = [len(rows) * sides for rows in work.shares]
    together = torch.zeros((len(groups), sides), dtype=torch.float64, device=device)
    for rows, values in zip(work.shares, gathered(flat, rows_of, policy.ranks), strict=True):
        together[rows] = values.view(-1, sides)
    return Measured(whole, together)


def _run(policy: Policy, groups: Sequence[Group]) -> Sequence[Group]:
    """The groups with all the tokens that run: a score is read at a completion's last token, a log-prob before it."""
    return whole(groups) if policy.scores else groups


def _forward(policy: Policy, groups: Sequence[Group], squares: bool) -> Measured:
    run = vars(policy.model)["measure"] if policy.sharded else partial(measure, policy.model)
    with torch.autocast(policy.model.device.type, policy.dtype, enabled=policy.dtype != torch.float32):
        logps, log_p2 = run(groups, policy.layout, squares, policy.scores)
    tokens = [[one.double() for one in group] for group in logps]
    if log_p2 is None:
        return Measured(tokens)
    return Measured(tokens, torch.stack([torch.stack([one.double().mean() for one in row]) for row in log_p2]).detach())


def measure(
    model: PreTrainedModel, groups: Sequence[Group], layout: Layout, squares: bool, scores: bool = False
) -> tuple[list[list[Tensor]], list[list[Tensor]] | None]:
    """`token_logps`, and log Σ p² where `squares` asks for it; or, of a model with a head, (1,) for each completion."""
    if scores:
        return [[one.reshape(1) for one in group] for group in sequence_scores(model, groups, layout)], None
    return token_logps_and_squares(model, groups, layout) if squares else (token_logps(model, groups, layout), None)


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
