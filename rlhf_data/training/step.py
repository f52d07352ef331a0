"""One optimizer step's gradients, in as many forwards as fit a token budget, as if it were one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs, PairWeights
from rlhf_data.scoring.logprobs import Group, Layout, plan, size, token_logps
from rlhf_data.training.batches import Rows
from rlhf_data.training.loss import weighted_loss

Weights = PairWeights | Tensor


@dataclass(frozen=True)
class Policy:
    """A model with the way its batches are laid out."""

    model: PreTrainedModel
    layout: Layout
    token_budget: int


def accumulate(
    policy: Policy, rows: Rows, picked: Sequence[int], rule: str, parameters: dict[str, Any]
) -> tuple[Pairs | Completions, Weights, int]:
    """Add the gradient of `weighted_loss` over the rows `picked` to the model's.

    A rule that averages over its batch sees the whole step: where that takes several forwards, its weights come from
    a first pass without gradients.

    Returns:
        The step's batch and weights, detached, rows in the order of `picked`; tokens run.
    """
    weigh = rules.rule(rule, **parameters)
    groups = [rows.groups[i] for i in picked]
    parts = plan(groups, policy.token_budget, policy.layout)
    mismatched = sequence_logps(policy, [rows.mismatched[i] for i in picked])[:, 0] if rows.mismatched else None
    normaliser = float(sum(rows.columns["weight"][i] for i in picked))

    def batch_of(at: Sequence[int], logps: Tensor) -> Pairs | Completions:
        part = None if mismatched is None else mismatched[list(at)]
        return batch(rows, [picked[i] for i in at], logps, part)

    whole = range(len(picked))
    weights: Weights | None = None
    if rules.is_static(rule):
        weights = weigh(batch_of(whole, _no_logps(rows, picked, policy.model.device)))
    elif rules.averages_over_batch(rule) and len(parts) > 1:
        weights = weigh(batch_of(whole, sequence_logps(policy, groups)))

    logps = _no_logps(rows, picked, policy.model.device)
    for part in parts:
        live = _summed(token_logps(policy.model, [groups[i] for i in part], policy.layout))
        logps[part] = live.detach()
        part_batch = batch_of(part, live)
        part_weights = weigh(part_batch) if weights is None else _take(weights, part)
        weighted_loss(part_batch, part_weights, normaliser=normaliser).backward()
    step = batch_of(whole, logps)
    tokens = sum(size(group, policy.layout) for group in groups)
    return step, weigh(step) if weights is None else weights, tokens


@torch.no_grad()
def sequence_logps(policy: Policy, groups: Sequence[Group]) -> Tensor:
    """Summed log-probs, nats, float64, without gradients: (groups, completions of each)."""
    parts = plan(groups, policy.token_budget, policy.layout)
    width = len(groups[0].completions)
    logps = torch.zeros((len(groups), width), dtype=torch.float64, device=policy.model.device)
    for part in parts:
        logps[part] = _summed(token_logps(policy.model, [groups[i] for i in part], policy.layout))
    return logps


def batch(rows: Rows, picked: Sequence[int], logps: Tensor, mismatched: Tensor | None) -> Pairs | Completions:
    """The rows `picked` as a rule sees them; `logps` is (n, 2) of pairs, (n, 1) of completions."""
    fields: dict[str, Tensor] = {
        name: torch.tensor([rows.columns[name][i] for i in picked], device=logps.device, dtype=dtype)
        for name, dtype in _FIELDS.items()
        if name in rows.columns
    }
    lengths = [[len(completion) for completion in rows.groups[i].completions] for i in picked]
    n_tokens = torch.tensor(lengths, device=logps.device)
    if logps.shape[1] == 2:
        return Pairs(
            policy_chosen_logps=logps[:, 0],
            policy_rejected_logps=logps[:, 1],
            chosen_n_tokens=n_tokens[:, 0],
            rejected_n_tokens=n_tokens[:, 1],
            **fields,
        )
    return Completions(
        policy_logps=logps[:, 0],
        n_tokens=n_tokens[:, 0],
        policy_mismatched_logps=mismatched,
        **fields,
    )


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
}


def _summed(logps: list[list[Tensor]]) -> Tensor:
    # float64: a difference of two sums of hundreds of nats keeps its digits.
    return torch.stack([torch.stack([one.double().sum() for one in group]) for group in logps])


def _no_logps(rows: Rows, picked: Sequence[int], device: torch.device) -> Tensor:
    return torch.zeros((len(picked), len(rows.groups[0].completions)), dtype=torch.float64, device=device)


def _take(weights: Weights, at: list[int]) -> Weights:
    if isinstance(weights, PairWeights):
        return PairWeights(weights.chosen[at], weights.rejected[at])
    return weights[at]
