"""An evaluation, however it is nested, as one table per measure: before, after and difference, overall and by group.

An estimate is a number, or a mapping with its value under one of VALUES, its 95% interval under one of INTERVALS or
under a pair of LOWS and HIGHS, and its size under one of SIZES. The keys on the way to it say what it is: one of STAGES
says which policy, one of GROUPS that the next key is a group's name, one of OVERALL nothing; the
others name the measure. A list of mappings that have one of NAMES is a mapping by that name. What training.preference_accuracy and
training.verified_reward return is read as it is, alone or below a measure's or a stage's name.
"""

import math
from typing import Any, NamedTuple

STAGES = {
    "before": ("before", "reference", "ref", "base", "baseline", "initial"),
    "after": ("after", "policy", "trained", "final"),
    "difference": ("difference", "delta", "diff", "change", "gain"),
}
STAGE_OF = {word: stage for stage, words in STAGES.items() for word in words}
GROUPS = ("by_category", "categories", "category", "by_source", "by", "per_category", "groups", "by_group")
OVERALL = ("overall", "all", "total", "evaluation", "metrics")
VALUES = ("value", "mean", "estimate", "rate", "accuracy", "preference_accuracy", "reward", "verified_reward")
GENERIC = VALUES[:4]
INTERVALS = ("interval", "ci", "ci95", "ci_95", "interval_95", "confidence_interval")
LOWS, HIGHS = ("low", "lower", "ci_low", "lo"), ("high", "upper", "ci_high", "hi")
SIZES = ("n", "pairs", "prompts", "rows", "count")
SKIPPED = ("dropped", "rewards", "completions", "seed")
# training.preference_accuracy has two shares of pairs; elsewhere the second word is a reward's.
RANKED = {
    "likelier": "accuracy: chosen is likelier than rejected",
    "reward": "accuracy: chosen has the larger log-ratio to the reference",
}
NAMES = ("category", "group", "name", "source")
GROUPS_SHOWN = 40


class Estimate(NamedTuple):
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Line(NamedTuple):
    """One group of one measure; `group` is None for all rows together."""

    group: str | None
    n: int | None
    before: Estimate | None
    after: Estimate | None
    difference: Estimate | None


class Measure(NamedTuple):
    """One measure with its lines, overall first.

    Attributes:
        name: what was measured, in words.
        share: the values are shares of one.
        lines: overall, then the groups by name.
        low, high: the scale that holds every estimate and interval.
    """

    name: str
    share: bool
    lines: list[Line]
    low: float
    high: float


def measures(evaluation: dict[str, Any] | None) -> list[Measure]:
    """Every measure found, in the evaluation's order; what is no estimate is passed over."""
    found: dict[tuple[str, str | None], dict[str, Estimate]] = {}
    for name, group, stage, estimate in _walk(evaluation or {}, "", None, None):
        found.setdefault((name, group), {}).setdefault(stage, estimate)
    names = list(dict.fromkeys(name for name, _ in found))
    return [_measure(name, {group: found[n, group] for n, group in found if n == name}) for name in names]


def _measure(name: str, stages: dict[str | None, dict[str, Estimate]]) -> Measure:
    groups = ([None] if None in stages else []) + sorted(group for group in stages if group is not None)[:GROUPS_SHOWN]
    lines = []
    for group in groups:
        before, after = stages[group].get("before"), stages[group].get("after")
        difference = stages[group].get("difference")
        if difference is None and before and after:
            difference = Estimate(after.value - before.value)
        n = next((e.n for e in (after, before, difference) if e and e.n is not None), None)
        lines.append(Line(group, n, before, after, difference))
    shown = [e for line in lines for e in (line.before, line.after) if e]
    ends = [v for e in shown for v in (e.value, e.low, e.high) if v is not None]
    share = any(word in name for word in ("accuracy", "rate", "share", "agreement")) and all(0 <= v <= 1 for v in ends)
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.05
    return Measure(name.replace("_", " "), share, lines, low - room, high + room)


def _walk(node: Any, name: str, group: str | None, stage: str | None, n: int | None = None) -> Any:
    """Yield (measure, group, stage, estimate) of everything below `node`; `n` is the size said further up."""
    if isinstance(node, list):
        node = {"by": _by_name(node)} if all(isinstance(each, dict) for each in node) else {}
    if not isinstance(node, dict):
        return
    n = _size(node, n)
    key = next((key for key in VALUES if _number(node.get(key)) is not None), None)
    taken: set[str] = {*SIZES, *SKIPPED}
    if key is not None:
        yield name or ("value" if key in GENERIC else key), group, stage or "after", _estimate(node, key, n)
        taken |= {key, *INTERVALS, *LOWS, *HIGHS}
    for child, below in node.items():
        if child in taken:
            continue
        if child in GROUPS and group is None:
            yield from _groups(below, name, stage)
            continue
        at, inner = STAGE_OF.get(child, stage), _inner(node, child, name)
        if (value := _number(below)) is None:
            yield from _walk(below, inner, group, at, n)
        elif at is not None:
            yield inner or "value", group, at, Estimate(value, n=n)


def _inner(node: dict[str, Any], child: str, name: str) -> str:
    """The measure's name below `child` of `node`."""
    if "likelier" in node and child in RANKED:
        return RANKED[child]
    if child in OVERALL or (child in VALUES and name):
        return name
    if child not in STAGE_OF:
        return f"{name} {child}".strip()
    # A difference beside the one measure that it is the difference of.
    beside = [
        c for c in node if c not in STAGE_OF and c not in OVERALL and isinstance(node[c], dict) and _has_value(node[c])
    ]
    return _inner(node, beside[0], name) if len(beside) == 1 else name


def _groups(node: Any, name: str, stage: str | None) -> Any:
    by_name = _by_name(node) if isinstance(node, list) else node
    for group, below in (by_name if isinstance(by_name, dict) else {}).items():
        if (value := _number(below)) is not None:
            yield name or "value", str(group), stage or "after", Estimate(value)
        else:
            yield from _walk(below, name, str(group), stage)


def _by_name(lines: list[Any]) -> dict[str, Any]:
    named = [(next((key for key in NAMES if key in line), None), line) for line in lines if isinstance(line, dict)]
    return {str(line[key]): {k: v for k, v in line.items() if k != key} for key, line in named if key}


def _has_value(node: dict[str, Any]) -> bool:
    return any(_number(node.get(key)) is not None for key in VALUES)


def _size(node: dict[str, Any], otherwise: int | None) -> int | None:
    size = _first(node, SIZES)
    return otherwise if size is None else int(size)


def _estimate(node: dict[str, Any], key: str, n: int | None) -> Estimate:
    both = next((node[k] for k in INTERVALS if isinstance(node.get(k), list | tuple) and len(node[k]) == 2), None)
    low, high = both or (_first(node, LOWS), _first(node, HIGHS))
    return Estimate(float(node[key]), _number(low), _number(high), n)


def _first(node: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    return next((value for key in keys if (value := _number(node.get(key))) is not None), None)


def _number(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if whole else None
