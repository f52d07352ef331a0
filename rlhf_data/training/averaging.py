"""A reference that follows the policy (TR-DPO): it is measured in the step, as no stored log-prob of it can be valid.

After every `tau` updates θ_ref ← α θ + (1 − α) θ_ref, element by element. α = 1 is the hard update, α < 1 the soft one;
an average that keeps the share d of itself at every step has α = 1 − d, τ = 1.

The reference is the policy's own module with other numbers in it for the length of a forward: only what is trained is
kept twice, and the same code measures both.

Source: Gorbatovski et al. 2024, arXiv:2404.09656, equations 1 and 2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_data.training.batches import Rows
from rlhf_data.training.sharding import forget_whole, held
from rlhf_data.training.step import Policy, measured

# Columns that a moving reference fills, with the completion of the row that each is of.
_LIVE = {
    "ref_chosen_logps": 0,
    "ref_rejected_logps": 1,
    "ref_logps": 0,
    "ref_chosen_token_logps": 0,
    "ref_rejected_token_logps": 1,
    "ref_token_logps": 0,
    "ref_mismatched_logps": 0,
}


@dataclass(frozen=True)
class Moving:
    """A reference that follows `model`: `values[i]` stands for `parameters[i]` while it is measured.

    Of a model in shares, each rank holds the values of its share.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    values: list[Tensor]
    alpha: float
    tau: int


def moving(reference: dict[str, Any]) -> dict[str, Any]:
    """{"ema": d} or {"alpha"?, "tau"?} as {"alpha", "tau"}.

    Raises:
        ValueError: both forms at once, or a value out of range.

    >>> moving({"ema": 0.75})
    {'alpha': 0.25, 'tau': 1}
    """
    said = {key: value for key, value in reference.items() if value is not None}
    if unknown := said.keys() - {"ema", "alpha", "tau"}:
        raise ValueError(f"a moving reference is {{ema}} or {{alpha, tau}}, and has no {', '.join(sorted(unknown))}")
    if not said or ("ema" in said and len(said) > 1):
        raise ValueError(f"a moving reference is {{ema}} or {{alpha, tau}}, not {said}")
    alpha, tau = (1 - said["ema"], 1) if "ema" in said else (said.get("alpha", 1.0), said.get("tau", 1))
    if not (0 < alpha <= 1 and isinstance(tau, int) and tau >= 1):
        raise ValueError(f"alpha is {alpha}, tau {tau}: alpha (1 − ema) must be in (0, 1], tau a whole number >= 1")
    return {"alpha": alpha, "tau": tau}


def follow(model: nn.Module, *, alpha: float, tau: int, adapted: bool = False) -> Moving:
    """A reference that is `model` as it stands, and follows what of it is trained.

    Args:
        model: the policy.
        alpha: share of the policy in an update, in (0, 1].
        tau: steps between updates.
        adapted: whether an adapter is what is trained.

    Raises:
        ValueError: a soft update of an adapter, or of parameters too coarse for one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if alpha < 1 and adapted:
        raise ValueError(
            f"alpha is {alpha}: the average of two adapters' factors is not the average of their products; "
            "with lora, write alpha: 1 and a tau"
        )
    if alpha < 1 and any(parameter.dtype != torch.float32 for parameter in parameters):
        raise ValueError(
            f"alpha is {alpha}: an average needs dtype float32, as small changes vanish in less; or alpha: 1"
        )
    values = [parameter.detach().clone() for parameter in parameters]
    return Moving(model, parameters, values, alpha, tau)


@contextmanager
def standing_in(reference: Moving) -> Iterator[None]:
    """The policy's module as its reference; no gradient may be pending through it."""
    _exchange(reference)
    try:
        yield
    finally:
        _exchange(reference)


@torch.no_grad()
def update(reference: Moving, step: int) -> bool:
    """Move the reference, where `step` optimizer steps (counted from 1) are a multiple of tau; whether it moved."""
    if step % reference.tau:
        return False
    for value, parameter in zip(reference.values, reference.parameters, strict=True):
        if reference.alpha == 1:
            held(value).copy_(held(parameter))
        else:
            held(value).lerp_(held(parameter), reference.alpha)
    return True


def stored_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Of the columns that a rule reads, those that a snapshot still has to hold.

    >>> stored_columns(("ref_logps", "reward"))
    ('reward',)
    """
    return tuple(name for name in columns if name not in _LIVE)


def with_references(
    policy: Policy, reference: Moving, rows: Rows, picked: Sequence[int], columns: Sequence[str]
) -> Rows:
    """The rows `picked`, in their order, with the log-probs that the reference gives them now.

    Args:
        policy: whose module the reference is of.
        reference: as it stands before this step.
        rows: without log-probs of a reference.
        picked: which of them.
        columns: what the rule reads.
    """
    taken = replace(
        rows,
        ids=[rows.ids[i] for i in picked],
        groups=[rows.groups[i] for i in picked],
        mismatched=[rows.mismatched[i] for i in picked] if rows.mismatched else [],
        columns={name: [values[i] for i in picked] for name, values in rows.columns.items()},
    )
    wanted = [name for name in columns if name in _LIVE]
    if not wanted:
        return taken
    with standing_in(reference):
        own = measured(policy, taken.groups).tokens if set(wanted) - {"ref_mismatched_logps"} else []
        others = measured(policy, taken.mismatched).tokens if "ref_mismatched_logps" in wanted else []
    for name in wanted:
        values = [row[_LIVE[name]] for row in (others if name == "ref_mismatched_logps" else own)]
        by_token = "token_" in name
        taken.columns[name] = [one.tolist() if by_token else float(one.sum()) for one in values]
    return taken


@torch.no_grad()
def _exchange(reference: Moving) -> None:
    for i, (parameter, value) in enumerate(zip(reference.parameters, reference.values, strict=True)):
        if isinstance(parameter, DTensor):  # FSDP knows its shares by where they lie
            before = held(parameter).clone()
            held(parameter).copy_(held(value))
            held(value).copy_(before)
        else:
            parameter.data, reference.values[i] = value, parameter.data
    forget_whole(reference.model)
