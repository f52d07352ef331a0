"""Every objective as w₊ and w₋: `rule("dpo", beta=0.1)(batch)` gives the weights of a batch's gradients.

A rule is a function. Its positional parameters name the quantities it needs of a batch, its keyword-only ones are its
hyperparameters. To add one: write the function in its family's file and name it in that file's RULES, with the
published loss, for reports, beside it in LOSSES. Nothing here imports torch.
"""

import inspect
import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, get_args

from rlhf_data.rules import paired, supervised, unpaired
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

RULES: dict[str, Callable] = {**supervised.RULES, **unpaired.RULES, **paired.RULES}
LOSSES: dict[str, Callable] = {**supervised.LOSSES, **unpaired.LOSSES, **paired.LOSSES}


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
    _known(name)
    return "paired" if name in paired.RULES else "unpaired"


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
    if metadata := getattr(annotation, "__metadata__", None):
        (bound,) = metadata
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (value > 0 if bound == "> 0" else value >= 0):
            raise ValueError(f"{where} is {value!r}: it must be a finite number {bound}")
    elif value not in get_args(annotation):
        raise ValueError(f"{where} is {value!r}: it must be one of {', '.join(get_args(annotation))}")


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
