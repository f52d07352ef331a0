"""Which rules are asked about, what they read, and why one cannot be answered."""

import math
from collections.abc import Collection
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple

from rlhf_data import rules, tables
from rlhf_data.rules import Completions, Pairs

KINDS = {"paired": Pairs, "unpaired": Completions}
MISMATCHED = "policy_mismatched_logps"
# What each field of a batch is on one side of a pair, where a rule for completions is asked about pairs.
SIDES = {
    "policy_logps": "policy_{}_logps",
    "ref_logps": "ref_{}_logps",
    "n_tokens": "{}_n_tokens",
    "reward": "{}_reward",
}
_CURES = {
    "label": "label the rows",
    "margin": "pair rated answers, as compared ones have no gap of rewards",
    "reward": "rate the answers",
    "old_": "score with `references: {old: {model: …}}`",
    "mismatched": "score with a rule that wants partners, such as kto, in `train`",
}
_SCORE = "add `score:` to the pipeline and build it again"


class Asked(NamedTuple):
    """A rule with its parameters; `label` is how it was written, and how its columns are named."""

    label: str
    rule: str
    parameters: dict[str, Any]


def parse(text: str) -> list[Asked]:
    """Rules as a person writes them: `RULE` or `RULE:PARAMETER=VALUE:…`, with commas between.

    Raises:
        ValueError: no such rule or parameter, a value out of its range, or one rule twice in the same words.

    >>> parse("dpo:beta=0.2,simpo")[0]
    Asked(label='dpo:beta=0.2', rule='dpo', parameters={'beta': 0.2})
    """
    asked = [_one(words.strip()) for words in text.split(",") if words.strip()]
    labels = [one.label for one in asked]
    if not asked:
        raise ValueError("no rule is named: write --rules dpo,simpo or --rules dpo:beta=0.2; `rlhf-data rules` has all")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{', '.join(twice)} is asked for twice: name each once, or with other parameters")
    return asked


def everything() -> list[Asked]:
    """Every rule, as it is by default."""
    return [Asked(name, name, {}) for name in rules.RULES]


@cache
def reads(rule: str) -> frozenset[str]:
    """The measured fields of a batch that a rule reads, through whatever derived quantity.

    >>> sorted(reads("simpo"))
    ['chosen_n_tokens', 'policy_chosen_logps', 'policy_rejected_logps', 'rejected_n_tokens']
    """
    kind = KINDS[rules.table(rule)]
    seen = _Seen(kind)
    for need in rules.needs(rule):
        getattr(seen, need)
    return frozenset(seen.names)


class _Seen:
    """A batch that remembers which of its fields were read, and gives for each a number that any formula takes."""

    def __init__(self, kind: type) -> None:
        self.kind, self.names, self.measured = kind, set[str](), {field.name for field in fields(kind)}

    def __getattr__(self, name: str) -> Any:
        derived = getattr(self.kind, name, None)
        if name not in self.measured and isinstance(derived, property) and derived.fget:
            return derived.fget(self)
        self.names.add(name)  # what no batch of this kind has is refused by name later
        return _ANYTHING


class _Anything:
    """Whatever is done with it gives it again."""

    def __getattr__(self, name: str) -> Any:
        return self

    def _again(self, *_: Any, **__: Any) -> Any:
        return self

    def __len__(self) -> int:
        return 1

    __call__ = __getitem__ = __setitem__ = __neg__ = __invert__ = __abs__ = _again
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _again
    __rpow__ = __matmul__ = __floordiv__ = __mod__ = _again
    __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = _again


_ANYTHING = _Anything()


def sided(field: str, table: str, side: str) -> str:
    """The column that holds a field of one completion: of an unpaired row, or of one side of a pair."""
    return field if table == "unpaired" else SIDES.get(field, field).format(side)


def wanted(rule: str, table: str, *, moved: bool) -> frozenset[str]:
    """The columns of a snapshot of this table that hold what the rule reads.

    Unless the policy has moved, references stand for it; the log-probs of one that has are in no snapshot.

    A rule for completions sees a pair as two: what it reads is then there for either side. Labels are the sides.
    """
    columns = set[str]()
    crossed = rules.table(rule) != table
    for field in reads(rule):
        names = [sided(field, "paired", side) for side in ("chosen", "rejected")] if crossed else [field]
        columns.update(name.replace("policy_", "ref_") for name in names if not (moved and "policy_" in name))
    if crossed:
        columns -= {"label", "ref_mismatched_logps"}
    return frozenset(columns)


def refused(asked: Asked, table: str, filled: Collection[str], *, moved: bool) -> str | None:
    """Why a rule has no weights over a snapshot, and what would give it some; None where it has.

    Args:
        asked: the rule.
        table: "paired" or "unpaired".
        filled: columns that hold a value in every row that counts.
        moved: whether the policy is another than the reference.
    """
    own = rules.table(asked.rule)
    if own == "paired" and table == "unpaired":
        return f"{asked.label} weighs pairs and this snapshot holds single completions: build one with `to: paired`"
    crossed = own != table
    if crossed and moved and MISMATCHED in reads(asked.rule):
        return (
            f"{asked.label} needs mismatched partners, which a paired snapshot lacks (at the reference their log-ratio "
            "is 0): build one with `to: unpaired` and `train: {rule: " + asked.rule + "}`"
        )
    known = {field.name for field in fields(KINDS[own])}
    if unknown := sorted(reads(asked.rule) - known):
        return (
            f"{asked.label} needs {', '.join(unknown)}, which no snapshot holds: its weights are known in training only"
        )
    columns = wanted(asked.rule, table, moved=moved)
    optional = {c for c, dtype in tables.optional_columns(table).items() if dtype.is_numeric()}
    if unknown := sorted(columns - tables.columns(table).keys() - optional):
        # As the rule calls it: the reference of what no snapshot holds is there for the policy's only.
        read = reads(asked.rule)
        names = ", ".join(sorted({n if n in read else n.replace("ref_", "policy_") for n in unknown}))
        return f"{asked.label} needs {names}, which no snapshot holds: its weights are known in training only"
    lacking = sorted(columns - set(filled))
    if not lacking:
        return None
    cures = dict.fromkeys(next((cure for word, cure in _CURES.items() if word in name), _SCORE) for name in lacking)
    return f"{asked.label} needs {', '.join(lacking)}, which is empty in this snapshot: {'; '.join(cures)}"


def _one(words: str) -> Asked:
    name, *settings = words.split(":")
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise ValueError(f"{words}: write {name}:PARAMETER=VALUE; {wrong[0]!r} has no =")
    values = {key: _value(value) for key, value in (setting.split("=", 1) for setting in settings)}
    rules.check_parameters(name, values)
    return Asked(words, name, values)


def _value(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
