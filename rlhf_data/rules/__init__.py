"""Every objective as w₊ and w₋: `rule("dpo", beta=0.1)(batch)` gives the weights of a batch's gradients.

A rule is a function. Its positional parameters name the quantities it needs of a batch, its keyword-only ones are its
hyperparameters, and what it returns says which table it is for: PairWeights for pairs, one tensor for completions. To
add one: write the function in its family's file and name it in that file's RULES, with the published loss, for
reports, beside it in LOSSES. A rule named `seed.…` is the short form of "Unifying RLHF Objectives". Nothing here
imports torch.
"""

import inspect
import math
import operator
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from rlhf_data.rules import (
    batchwise,
    informed,
    paired,
    policy_gradient,
    reference_free,
    seed,
    supervised,
    two_sided,
    unpaired,
)
from rlhf_data.rules.batch import COLUMNS, STATIC, Completions, Pairs, PairWeights, given

__all__ = [
    "LOSSES",
    "RULES",
    "Completions",
    "PairWeights",
    "Pairs",
    "averages_over_batch",
    "check_parameters",
    "columns",
    "honours_preference",
    "is_static",
    "loss",
    "needs",
    "parameters",
    "rule",
    "table",
]

_FAMILIES = (
    supervised,
    policy_gradient,
    unpaired,
    paired,
    informed,
    two_sided,
    reference_free,
    batchwise,
    seed,
)
RULES: dict[str, Callable] = {name: rule for family in _FAMILIES for name, rule in family.RULES.items()}
LOSSES: dict[str, Callable] = {name: loss for family in _FAMILIES for name, loss in family.LOSSES.items()}
_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt}


def rule(name: str, **parameters: Any) -> Callable[[Pairs | Completions], Any]:
    """The rule as a function of a batch: PairWeights for a paired rule, (n,) for an unpaired one.

    Raises:
        ValueError: no such rule or parameter, or a parameter out of its range.

    >>> import torch
    >>> zeros, ones = torch.zeros(2), torch.ones(2)
    >>> rule("dpo", beta=0.5)(Pairs(zeros, zeros, ones, zeros, zeros, ones)).chosen
    tensor([0.2500, 0.2500])
    """
    check_parameters(name, parameters)
    return _on_batch(RULES[name], parameters)


def loss(name: str, **parameters: Any) -> Callable[[Pairs | Completions], Any]:
    """The published loss of a rule as a function of a batch, (n,): for reports, never differentiated."""
    check_parameters(name, parameters)
    return _on_batch(LOSSES[name], parameters)


def needs(name: str) -> tuple[str, ...]:
    """The quantities of a batch that a rule asks for.

    >>> needs("dpo")
    ('log_ratio_margin', 'preference')
    """
    return _positional(_known(name))


def parameters(name: str) -> dict[str, Any]:
    """A rule's hyperparameters and their defaults.

    >>> parameters("dpo")
    {'beta': 0.1}
    """
    return {p.name: p.default for p in _keyword_only(_known(name))}


def table(name: str) -> str:
    """The table that a rule trains on: "paired" or "unpaired"."""
    return "paired" if inspect.signature(_known(name)).return_annotation is PairWeights else "unpaired"


def columns(name: str) -> tuple[str, ...]:
    """The snapshot columns that may be empty elsewhere and must be filled for this rule.

    >>> columns("dpo")
    ('ref_chosen_logps', 'ref_rejected_logps')
    """
    return tuple(dict.fromkeys(column for need in needs(name) for column in COLUMNS.get(need, ())))


def honours_preference(name: str) -> bool:
    """Whether a rule reads `preference`; one that does not must not be given soft rows."""
    return "preference" in needs(name)


def averages_over_batch(name: str) -> bool:
    """Whether a row's weight depends on other rows.

    Such a rule has to know what each row counts for, so it names `weight`; it must see a whole optimizer step at once.
    """
    return "weight" in needs(name)


def is_static(name: str) -> bool:
    """Whether a rule's weights are known before the policy runs."""
    return STATIC.issuperset(needs(name))


def check_parameters(name: str, values: dict[str, Any]) -> None:
    """ValueError unless `values` are hyperparameters of the rule `name`, each in its range."""
    known = {p.name: p for p in _keyword_only(_known(name))}
    for parameter, value in values.items():
        if parameter not in known:
            raise ValueError(
                f"{name} has no parameter '{parameter}'{_did_you_mean(parameter, known)}; "
                f"it has: {', '.join(known) or 'none'}"
            )
        _check_range(f"{name}: {parameter}", value, known[parameter].annotation)


def _check_range(where: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise ValueError(f"{where} is {value!r}: it must be one of {', '.join(get_args(annotation))}")
        return
    bounds = getattr(annotation, "__metadata__", ())
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not all(_holds(value, bound) for bound in bounds):
        raise ValueError(f"{where} is {value!r}: it must be a finite number {' and '.join(bounds)}".rstrip())


def _holds(value: float, bound: str) -> bool:
    relation, limit = bound.split()
    return _OPERATORS[relation](value, float(limit))


def _known(name: str) -> Callable:
    if name not in RULES:
        raise ValueError(f"no rule named '{name}'{_did_you_mean(name, RULES)}; known rules: {', '.join(RULES)}")
    return RULES[name]


def _did_you_mean(word: str, known: Any) -> str:
    close = get_close_matches(str(word), list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def _on_batch(function: Callable, parameters: dict[str, Any]) -> Callable[[Pairs | Completions], Any]:
    names = _positional(function)

    def weigh(batch: Pairs | Completions) -> Any:
        quantities = {name: given(batch, name) for name in names}
        if len({tuple(quantity.shape) for quantity in quantities.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(quantity.shape)}" for name, quantity in quantities.items())
            raise ValueError(f"{function.__name__} takes one number a row, but the batch has {shapes}")
        return function(*quantities.values(), **parameters)

    return weigh


def _positional(function: Callable) -> tuple[str, ...]:
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD)


def _keyword_only(function: Callable) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
