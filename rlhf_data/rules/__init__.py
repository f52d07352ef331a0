"""Every objective as w₊ and w₋: `rule("dpo", beta=0.1)(batch)` gives the weights of a batch's gradients.

A rule is a function. Its positional parameters name the quantities it needs of a batch, its keyword-only ones are its
hyperparameters, and what it returns says which table it is for and what it weighs: PairWeights for pairs, one tensor
for completions, PairTokenWeights and TokenWeights where each token has a weight of its own. To add one: write the
function in its family's file and name it in that file's RULES, with the published loss, for reports, beside it in
LOSSES, and what it remembers between steps, if anything, in MEMORY. A rule named `seed.…` is the short form of
"Unifying RLHF Objectives". Nothing here imports torch.

Beside the names of RULES, a rule may be `module:function`, a mapping of formulas, or a sum of rules:

    {"chosen": "beta * sigmoid(-beta * D)", "rejected": "beta * sigmoid(-beta * D)", "beta": 0.1}
    {"sum": [{"rule": "dpo", "beta": 0.1}, {"rule": "sft", "coefficient": 0.1}]}

Every function here takes a rule in any of these forms.
"""

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from rlhf_data.rules import (
    batchwise,
    combined,
    formula,
    grouped,
    informed,
    own,
    paired,
    policy_gradient,
    reference_free,
    remembering,
    seed,
    supervised,
    tokenwise,
    two_sided,
    unpaired,
)
from rlhf_data.rules.batch import (
    COLUMNS,
    SCORES,
    STATIC,
    WITH_SCORES,
    Completions,
    Memory,
    Pairs,
    PairTokenWeights,
    PairWeights,
    TokenWeights,
    counted_by,
    given,
    per_row,
)
from rlhf_data.words import hint

__all__ = [
    "LOSSES",
    "MEMORY",
    "RULES",
    "Completions",
    "PairTokenWeights",
    "PairWeights",
    "Pairs",
    "Rule",
    "TokenWeights",
    "averages_over_batch",
    "check_parameters",
    "columns",
    "honours_preference",
    "is_static",
    "keeps_groups",
    "label",
    "loss",
    "memory",
    "modules",
    "needs",
    "needs_both_classes",
    "parameters",
    "remember",
    "rule",
    "scores",
    "table",
    "weighs_tokens",
]

Rule = str | Mapping[str, Any]

_FAMILIES = (
    supervised,
    policy_gradient,
    unpaired,
    paired,
    informed,
    two_sided,
    reference_free,
    batchwise,
    remembering,
    grouped,
    tokenwise,
    seed,
)
RULES: dict[str, Callable] = {name: rule for family in _FAMILIES for name, rule in family.RULES.items()}
LOSSES: dict[str, Callable] = {name: loss for family in _FAMILIES for name, loss in family.LOSSES.items()}
MEMORY: dict[str, Memory] = remembering.MEMORY
_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_PAIRED = (PairWeights, PairTokenWeights)


def rule(name: Rule, **parameters: Any) -> Callable[..., Any]:
    """The rule as a function of a batch: PairWeights for a paired rule, (n,) for an unpaired one, or token weights.

    A rule that remembers takes its memory, a mapping of names to numbers, as a second argument; without it, it stands
    at its first step.

    Raises:
        ValueError: no such rule or parameter, or a parameter out of its range.

    >>> import torch
    >>> zeros, ones = torch.zeros(2), torch.ones(2)
    >>> rule("dpo", beta=0.5)(Pairs(zeros, zeros, ones, zeros, zeros, ones)).chosen
    tensor([0.2500, 0.2500])
    """
    known = _known(name)
    _check_values(known, parameters)
    return _on_batch(known, known.weigh, parameters)


def loss(name: Rule, **parameters: Any) -> Callable[..., Any]:
    """The published loss of a rule as a function of a batch, and of a memory, (n,): for reports, never differentiated.

    A formula or function that comes without a loss reports −(w₊ log π(y₊) − w₋ log π(y₋)).
    """
    known = _known(name)
    _check_values(known, parameters)
    if known.loss is None:
        return _surrogate(_on_batch(known, known.weigh, parameters))
    taken = {p.name for p in _keyword_only(known.loss)}
    return _on_batch(known, known.loss, {key: value for key, value in parameters.items() if key in taken})


def needs(name: Rule) -> tuple[str, ...]:
    """The quantities of a batch that a rule asks for.

    >>> needs("dpo")
    ('log_ratio_margin', 'preference')
    """
    known = _known(name)
    return tuple(need for need in _positional(known.weigh) if need not in known.start)


def parameters(name: Rule) -> dict[str, Any]:
    """A rule's hyperparameters and their defaults.

    >>> parameters("dpo")
    {'beta': 0.1}
    """
    return {p.name: p.default for p in _keyword_only(_known(name).weigh)}


def table(name: Rule) -> str:
    """The table that a rule trains on: "paired" or "unpaired"."""
    return _known(name).table


def columns(name: Rule) -> tuple[str, ...]:
    """The snapshot columns that may be empty elsewhere and must be filled for this rule.

    >>> columns("dpo")
    ('ref_chosen_logps', 'ref_rejected_logps')
    """
    return tuple(dict.fromkeys(column for need in needs(name) for column in COLUMNS.get(need, ())))


def label(name: Rule) -> str:
    """A rule in words, for messages and headlines.

    >>> label({"sum": [{"rule": "dpo"}, {"rule": "sft", "coefficient": 0.1}]})
    'dpo + 0.1 sft'
    """
    return _known(name).name


def honours_preference(name: Rule) -> bool:
    """Whether a rule reads `preference`; one that does not must not be given soft rows. A sum does if all terms do."""
    return _known(name).honours


def averages_over_batch(name: Rule) -> bool:
    """Whether a row's weight depends on other rows.

    Such a rule has to know what each row counts for, so it names `weight`, or which rows answer one prompt, so it
    names `group`; it must see a whole optimizer step at once.
    """
    return not {"weight", "group"}.isdisjoint(needs(name))


def keeps_groups(name: Rule) -> bool:
    """Whether an optimizer step has to hold all answers to a prompt or none: the rule names `group`."""
    return "group" in needs(name)


def needs_both_classes(name: Rule) -> bool:
    """Whether an optimizer step has to hold desirable and undesirable rows: the policy's are averaged beside labels.

    >>> [needs_both_classes(name) for name in ("kto", "bco", "c_rlft", "apo_zero_unpaired")]
    [True, True, False, False]
    """
    return "label" in needs(name) and averages_over_batch(name) and not is_static(name)


def weighs_tokens(name: Rule) -> bool:
    """Whether the rule gives each token a weight of its own, for which it sees each token's log-prob."""
    return inspect.signature(_known(name).weigh).return_annotation in (TokenWeights, PairTokenWeights)


def scores(name: Rule) -> bool:
    """Whether a rule trains a reward head, whose score it weighs, and not a policy.

    Raises:
        ValueError: it reads log-probs as well, which a reward model does not have.

    >>> scores("rm"), scores("dpo")
    (True, False)
    """
    asked = needs(name)
    if not SCORES.intersection(asked):
        return False
    if others := [need for need in asked if need not in SCORES | WITH_SCORES]:
        raise ValueError(
            f"{label(name)} reads the score of a reward head and {', '.join(others)}, which are of a policy: "
            "train the two apart"
        )
    return True


def is_static(name: Rule) -> bool:
    """Whether a rule's weights are known before the policy runs."""
    known = _known(name)
    return not known.start and STATIC.issuperset(_positional(known.weigh))


def memory(name: Rule) -> dict[str, float]:
    """What a rule remembers from step to step, as it is before the first; empty for most.

    >>> memory("bco")
    {'delta': 0.0, 'seen': 0.0}
    """
    return dict(_known(name).start)


def remember(
    name: Rule, batch: Pairs | Completions, memory: Mapping[str, float], **parameters: Any
) -> dict[str, float]:
    """The memory after the optimizer step `batch`; the step's own weights are computed with it."""
    known = _known(name)
    if known.memory is None:
        return {}
    taken = {p.name for p in _keyword_only(known.memory.update)}
    values = {key: value for key, value in parameters.items() if key in taken}
    updated = _on_batch(known, known.memory.update, values)(batch, memory)
    return {key: value.item() for key, value in updated.items()}


def modules(name: Rule) -> tuple[str, ...]:
    """The modules outside this package that a rule's code stands in: what a fingerprint has to read.

    >>> modules({"sum": [{"rule": "dpo"}, {"rule": "my_rules:careful"}]})
    ('my_rules',)
    """
    if isinstance(name, str):
        return (name.partition(":")[0],) if ":" in name else ()
    terms = name.get("sum", ()) if isinstance(name, Mapping) else ()
    return tuple(dict.fromkeys(module for term in terms for module in modules(term["rule"])))


def check_parameters(name: Rule, values: dict[str, Any]) -> None:
    """ValueError unless `values` are hyperparameters of the rule `name`, each in its range."""
    _check_values(_known(name), values)


class _Known(NamedTuple):
    """A rule in any of its forms, ready to be called."""

    name: str
    table: str
    weigh: Callable[..., Any]
    loss: Callable[..., Any] | None
    memory: Memory | None
    honours: bool

    @property
    def start(self) -> dict[str, float]:
        return {} if self.memory is None else self.memory.start


def _known(name: Rule) -> _Known:
    if isinstance(name, str) and name in RULES:
        return _made(name, RULES[name], LOSSES[name], MEMORY.get(name))
    if isinstance(name, str) and ":" in name:
        return _made(name, *own.own(name))
    if isinstance(name, str):
        raise ValueError(f"no rule named '{name}'{hint(name, RULES, ': ')}; known rules: {', '.join(RULES)}")
    if isinstance(name, Mapping) and "sum" in name:
        return _summed(name)
    if isinstance(name, Mapping) and {"chosen", "rejected", "completion"} & name.keys():
        made = formula.written(name)
        texts = [f"{side} = {name[side]}" for side in ("chosen", "rejected", "completion") if side in name]
        return _made("; ".join(texts), made.weigh, made.loss)
    raise ValueError(
        f"a rule is a name, module:function, {{chosen: FORMULA, rejected: FORMULA}}, {{completion: FORMULA}} or "
        f"{{sum: [{{rule: …}}, …]}}, not {name!r}"
    )


def _made(
    name: str, weigh: Callable[..., Any], loss: Callable[..., Any] | None, memory: Memory | None = None
) -> _Known:
    table = "paired" if inspect.signature(weigh).return_annotation in _PAIRED else "unpaired"
    return _Known(name, table, weigh, loss, memory, "preference" in _positional(weigh))


def _summed(name: Mapping[str, Any]) -> _Known:
    """The sum of `{"sum": [{"rule": …, "coefficient": 1.0, PARAMETER: …}, …]}`."""
    items = name["sum"]
    if extra := [key for key in name if key != "sum"]:
        raise ValueError(f"a sum has no {extra[0]}: the parameters of its terms stand in the terms")
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("a sum is a list of terms: {sum: [{rule: dpo, beta: 0.1}, {rule: sft, coefficient: 0.1}]}")
    terms, words, honours = [], [], True
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or "rule" not in item:
            raise ValueError(f"term {number} of the sum is {item!r}: write {{rule: NAME, coefficient: 1.0, …}}")
        part = _known(item["rule"])
        values = {key: value for key, value in item.items() if key not in ("rule", "coefficient")}
        _check_values(part, values)
        if part.memory is not None:
            raise ValueError(f"{part.name} remembers between steps, and a sum cannot: train with it alone")
        factor = item.get("coefficient", 1.0)
        _check_range(f"term {number} of the sum: coefficient", factor, float)
        terms.append(combined.Term(part.name, part.table, part.weigh, part.loss or _no_loss(part), values, factor))
        words.append(part.name if factor == 1 else f"{factor:g} {part.name}")
        honours = honours and part.honours
    weigh, loss = combined.added(terms)
    return _made(" + ".join(words), weigh, loss)._replace(honours=honours)


def _no_loss(part: _Known) -> Callable[..., Any]:
    raise ValueError(f"{part.name} has no loss to report, which a term of a sum needs: write its loss beside it")


def _surrogate(weigh: Callable[..., Any]) -> Callable[..., Any]:
    def reported(batch: Pairs | Completions, memory: Mapping[str, float] | None = None) -> Any:
        weights = weigh(batch, memory)
        if isinstance(weights, PairWeights):
            return weights.rejected * batch.policy_rejected_logps - weights.chosen * batch.policy_chosen_logps  # type: ignore[union-attr]
        if isinstance(weights, PairTokenWeights):
            chosen = _row_sums(batch, weights.chosen, "policy_chosen_token_logps", "chosen_token_row")
            return _row_sums(batch, weights.rejected, "policy_rejected_token_logps", "rejected_token_row") - chosen
        if isinstance(weights, TokenWeights):
            return -_row_sums(batch, weights.tokens, "policy_token_logps", "token_row")
        return -weights * batch.policy_logps  # type: ignore[union-attr]

    return reported


def _row_sums(batch: Pairs | Completions, weights: Any, logps: str, row: str) -> Any:
    return per_row(weights * given(batch, logps), given(batch, row), batch.weight)


def _check_values(known: _Known, values: Mapping[str, Any]) -> None:
    has = {p.name: p for p in _keyword_only(known.weigh)}
    for parameter, value in values.items():
        if parameter not in has:
            raise ValueError(
                f"{known.name} has no parameter '{parameter}'{hint(parameter, has, ': ')}; "
                f"it has: {', '.join(has) or 'none'}"
            )
        _check_range(f"{known.name}: {parameter}", value, has[parameter].annotation)


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


def _on_batch(known: _Known, function: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    names = _positional(function)

    def weigh(batch: Pairs | Completions, memory: Mapping[str, float] | None = None) -> Any:
        remembered = {**known.start, **(memory or {})}
        quantities = {name: given(batch, name) for name in names if name not in known.start}
        for counted in {counted_by(name) for name in quantities}:
            alike = {
                name: tuple(quantity.shape) for name, quantity in quantities.items() if counted_by(name) == counted
            }
            if len(set(alike.values())) > 1:
                shapes = ", ".join(f"{name} {shape}" for name, shape in alike.items())
                raise ValueError(f"{known.name} takes one number a {counted}, but the batch has {shapes}")
        numbers = {name: remembered[name] for name in names if name in known.start}
        return function(*({**quantities, **numbers}[name] for name in names), **parameters)

    return weigh


def _positional(function: Callable) -> tuple[str, ...]:
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD)


def _keyword_only(function: Callable) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
