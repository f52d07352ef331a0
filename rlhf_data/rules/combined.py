"""Sums of rules over one table, such as DPO and a tenth of imitation: weights add up as gradients do."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from rlhf_data.rules.batch import PairTokenWeights, PairWeights, TokenWeights

# What a rule over single completions reads where it acts on the chosen completions of pairs.
ON_CHOSEN = {
    "weight": "weight",
    "n_tokens": "chosen_n_tokens",
    "policy_logps": "policy_chosen_logps",
    "ref_logps": "ref_chosen_logps",
    "log_ratio": "chosen_log_ratio",
    "mean_logp": "chosen_mean_logp",
    "token_row": "chosen_token_row",
    "policy_token_logps": "policy_chosen_token_logps",
    "ref_token_logps": "ref_chosen_token_logps",
    "token_log_ratio": "chosen_token_log_ratio",
}


class Term(NamedTuple):
    """One rule of a sum: its name for messages, its table, its two functions, and what it is multiplied by."""

    name: str
    table: str
    weigh: Callable[..., Any]
    loss: Callable[..., Any]
    parameters: dict[str, Any]
    coefficient: float


def added(terms: list[Term]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The sum's weights and its loss, as functions with the signatures of rules.

    Where one term is over pairs the sum is, and the terms over completions act on the chosen ones. Where one term
    weighs tokens, the others give each token their row's weight.

    Raises:
        ValueError: a term that cannot act on the chosen completions.
    """
    paired = any(term.table == "paired" for term in terms)
    for term in terms:
        lacking = [name for name in _needs(term.weigh) if name not in ON_CHOSEN]
        if paired and term.table == "unpaired" and lacking:
            raise ValueError(
                f"{term.name} cannot act on the chosen answers of pairs: they have no {', '.join(lacking)}; "
                "sum it with rules over the unpaired table"
            )
    kinds = [inspect.signature(term.weigh).return_annotation for term in terms]
    tokens = any(kind in (TokenWeights, PairTokenWeights) for kind in kinds)
    rows = (("chosen_token_row", "rejected_token_row") if paired else ("token_row",)) if tokens else ()

    def weigh(values: dict[str, Any]) -> Any:
        given = [_on(term, paired, term.weigh, values) for term in terms]
        parts = [_sides(weights, paired, [values[row] for row in rows]) for weights in given]
        factors = [term.coefficient for term in terms]
        sides: list[Any] = [sum(k * w for k, w in zip(factors, side, strict=True)) for side in zip(*parts, strict=True)]
        if paired:
            return (PairTokenWeights if tokens else PairWeights)(*sides)
        return TokenWeights(*sides) if tokens else sides[0]

    def loss(values: dict[str, Any]) -> Any:
        return sum(term.coefficient * _on(term, paired, term.loss, values) for term in terms)

    annotation = (PairTokenWeights if tokens else PairWeights) if paired else TokenWeights if tokens else "Tensor"
    return (
        _named(weigh, [_renamed(term, paired, term.weigh) for term in terms], rows, annotation),
        _named(loss, [_renamed(term, paired, term.loss) for term in terms], (), "Tensor"),
    )


def _sides(weights: Any, paired: bool, rows: list[Any]) -> list[Any]:
    """A term's weights of each side, spread over the tokens of `rows` where the sum weighs tokens."""
    if paired and isinstance(weights, TokenWeights):
        return [weights.tokens, weights.tokens.new_zeros(rows[1].shape)]
    if isinstance(weights, TokenWeights | PairTokenWeights):
        return list(weights)
    sides = list(weights) if isinstance(weights, PairWeights) else [weights, weights * 0] if paired else [weights]
    return [side[row] for side, row in zip(sides, rows, strict=True)] if rows else sides


def _on(term: Term, paired: bool, function: Callable[..., Any], values: dict[str, Any]) -> Any:
    return function(*(values[name] for name in _renamed(term, paired, function)), **_taken(function, term.parameters))


def _taken(function: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name in known}


def _renamed(term: Term, paired: bool, function: Callable[..., Any]) -> list[str]:
    names = _needs(function)
    return [ON_CHOSEN[name] for name in names] if paired and term.table == "unpaired" else names


def _needs(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _named(
    function: Callable[[dict[str, Any]], Any], names: list[list[str]], extra: tuple[str, ...], annotation: Any
) -> Callable[..., Any]:
    """`function` of a dict as one of positional quantities, each named once."""
    wanted = list(dict.fromkeys([name for group in names for name in group] + list(extra)))

    def call(*quantities: Any) -> Any:
        return function(dict(zip(wanted, quantities, strict=True)))

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in wanted]
    call.__signature__ = inspect.Signature(positional, return_annotation=annotation)  # type: ignore[attr-defined]
    call.__name__ = "the sum"
    return call
