"""An evaluation as tables: one per measure, before, after and difference, overall and by group.

The form is the one of `training.compare`: {"measures": [{"name", "about", "share", "lines": [{"group", "n", "before",
"after", "difference"}]}]}, where a group of None is all rows and an estimate is {"value", "low", "high"} or None.
"""

from typing import Any, NamedTuple

GROUPS_SHOWN = 40


class Estimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


class Line(NamedTuple):
    """One group of one measure; `group` is None for all rows together."""

    group: str | None
    n: int
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
    """Every measure of an evaluation, in its order."""
    return [_measure(measure) for measure in (evaluation or {}).get("measures", [])]


def text_lines(evaluation: dict[str, Any]) -> list[str]:
    """The same as lines of text, for a terminal."""
    lines: list[str] = []
    for measure in measures(evaluation):
        lines += ["", f"{measure.name}, with 95% intervals", f"{'':<22}{'before':<24}{'after':<24}difference"]
        for line in measure.lines:
            name = f"{line.group or 'all'} ({line.n:,})"
            figures = [_text(e) for e in (line.before, line.after)] + [_text(line.difference, sign="+")]
            lines.append(f"{name[:21]:<22}{figures[0]:<24}{figures[1]:<24}{figures[2]}".rstrip())
    return lines


def _text(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _measure(measure: dict[str, Any]) -> Measure:
    lines = [
        Line(line["group"], line["n"], *(_estimate(line.get(part)) for part in ("before", "after", "difference")))
        for line in measure["lines"][: GROUPS_SHOWN + 1]
    ]
    ends = [v for line in lines for e in (line.before, line.after) if e for v in e]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.05
    low, high = low - room, high + room
    if measure["share"]:  # no axis goes where no share can be
        low, high = max(low, 0.0), min(high, 1.0)
    return Measure(measure["name"], measure["share"], lines, low, high)


def _estimate(estimate: dict[str, float] | None) -> Estimate | None:
    return Estimate(estimate["value"], estimate["low"], estimate["high"]) if estimate else None
