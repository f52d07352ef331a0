"""Accounting: every row that enters a step leaves it, was merged, was refused or was filtered, and each by a reason."""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Count:
    """What became of the rows that entered one step: rows_in = out + merged + quarantined + filtered.

    Attributes:
        step: the step's name, with its source where it has one: "read:hh".
        unit: what is counted: records, observations, completions, judgments, pairs.
        rows_in: how many came in.
        out: how many went on.
        merged: rows that became part of another row, by reason.
        quarantined: rows that were refused, by code.
        filtered: rows left out on purpose, by reason.
        notes: what a person should know although nothing is wrong with the rows.
    """

    step: str
    unit: str
    rows_in: int
    out: int
    merged: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        left = sum(sum(reasons.values()) for reasons in (self.merged, self.quarantined, self.filtered))
        if self.rows_in != self.out + left:
            raise RuntimeError(
                f"{self.step}: {self.rows_in} {self.unit} came in, but {self.out} went on and {left} are accounted "
                f"for otherwise: {self.rows_in - self.out - left} are lost. This is the step's fault, not the data's."
            )

    def as_dict(self) -> dict[str, Any]:
        """What a manifest says of it; notes only where there are any."""
        return {name: value for name, value in asdict(self).items() if name != "notes" or value}


def total(counts: list[Count], kind: str) -> Counter[str]:
    """The sum over counts of one kind of leaving ("merged", "quarantined", "filtered"), by reason."""
    summed: Counter[str] = Counter()
    for count in counts:
        summed.update(getattr(count, kind))
    return summed


def lost(counts: Iterable[Mapping[str, Any]], *kinds: str) -> Counter[str]:
    """How many rows left in these ways, by reason; an answer and its judgment that left together are one.

    Args:
        counts: as `Count.as_dict` or a manifest gives them.
        kinds: of "merged", "quarantined", "filtered".
    """
    of_unit: dict[str, Counter[str]] = {}
    for count in counts:
        for kind in kinds:
            of_unit.setdefault(count["unit"], Counter()).update(count.get(kind) or {})
    return reduce(operator.or_, of_unit.values(), Counter())


def summed(counts: list[Count]) -> Count:
    """The counts of parts of one step, of one unit, as one."""
    first = counts[0]
    return Count(
        first.step,
        first.unit,
        sum(count.rows_in for count in counts),
        sum(count.out for count in counts),
        merged=dict(total(counts, "merged")),
        quarantined=dict(total(counts, "quarantined")),
        filtered=dict(total(counts, "filtered")),
        notes=[note for count in counts for note in count.notes],
    )
