"""Curves of a training run: from metrics by step to the coordinates of a small SVG."""

import math
from itertools import accumulate
from typing import Any, NamedTuple

from rlhf_data.report.display import short
from rlhf_data.report.numbers import round_step

LEFT, RIGHT, TOP, BOTTOM = 52.0, 476.0, 12.0, 146.0
POINTS = 240  # beyond twice as many, lowest and highest of each run of neighbours are drawn, so that no spike is lost
SMOOTHED = 80  # more points than these get a running mean over them
CURVES = 12
X_KEYS = ("step", "global_step", "steps", "iteration")
# Not curves: they only count, or stand for the axis.
COUNTERS = {
    *X_KEYS,
    "epoch",
    "time",
    "wall",
    "wall_s",
    "seconds",
    "elapsed",
    "rows",
    "rows_seen",
    "tokens",
    "n",
    "seed",
    "round",
}
# Shown first, in this order; each family by any of its names.
FIRST = (
    ("loss", "train_loss"),
    ("log_ratio_margin", "reward_margin", "rewards_margin", "score_margin", "margin", "margins"),
    ("accuracy", "reward_accuracy", "rewards_accuracy"),
    ("reward",),
    ("chosen_log_ratio", "log_ratio"),
    ("rejected_log_ratio", "mismatched_log_ratio"),
    ("w_ess",),
    ("kl", "kl_k3"),
    ("grad_norm", "gradient_norm"),
    ("lr", "learning_rate"),
)
KINDS = {
    "accuracy": "chosen",
    "chosen_log_ratio": "chosen",
    "rejected_log_ratio": "rejected",
    **dict.fromkeys(("grad_norm", "gradient_norm", "lr", "learning_rate"), "two"),
}


class Tick(NamedTuple):
    at: float
    words: str


class Curve(NamedTuple):
    """One curve, ready to be drawn; coordinates are those of the macro's view box, `smooth` is a running mean."""

    title: str
    x_name: str
    kind: str
    path: str
    smooth: str
    end: tuple[float, float]
    first: float
    last: float
    low: float
    high: float
    points: int
    broken: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    baseline: float | None


def curves(metrics: list[dict[str, Any]]) -> list[Curve]:
    """A curve for each number in the metrics, the usual ones first; steps where a metric is absent are passed over."""
    if not metrics:
        return []
    x_name = next((key for key in X_KEYS if any(key in line for line in metrics)), "line")
    found: dict[str, list[tuple[float, float]]] = {}
    for at, line in enumerate(metrics):
        x = line.get(x_name, at)
        for key, value in line.items():
            if key not in COUNTERS and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(key, []).append((float(x), float(value)))
    names = [name for family in FIRST for name in family if name in found]
    names += sorted(found.keys() - set(names))
    drawn = (_curve(name, x_name, found[name]) for name in names)
    return [curve for curve in drawn if curve is not None][:CURVES]


def thin(points: list[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most about 2 · `most` of the points: lowest and highest of each run of neighbours, and both ends."""
    if len(points) <= 2 * most:
        return points
    size = math.ceil(len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        run = range(start, min(start + size, len(points)))
        kept |= {min(run, key=lambda k: points[k][1]), max(run, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The running mean over a fortieth of the points, half of it to each side."""
    half = max(1, len(points) // 80)
    sums = [0.0, *accumulate(y for _, y in points)]
    ends = [(max(0, k - half), min(len(points), k + half + 1)) for k in range(len(points))]
    return [(x, (sums[b] - sums[a]) / (b - a)) for (x, _), (a, b) in zip(points, ends, strict=True)]


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values from low to high, ends included where they are round."""
    step = round_step(high - low, wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _curve(name: str, x_name: str, points: list[tuple[float, float]]) -> Curve | None:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return None
    ys = [y for _, y in finite]
    low, high = min(ys), max(ys)
    bottom, top = _span(low, high)
    left, right = finite[0][0], max(finite[-1][0], finite[0][0])
    wide = (right - left) or 1.0

    def at_x(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - left) / wide, 1)

    def at_y(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (y - bottom) / (top - bottom), 1)

    drawn = [(at_x(x), at_y(y)) for x, y in thin(finite)]
    marks = ticks(left, right, 5) if right > left else [left]
    return Curve(
        title=name,
        x_name=x_name,
        kind=KINDS.get(name, "one"),
        path=_path(drawn),
        smooth=_path([(at_x(x), at_y(y)) for x, y in thin(smoothed(finite))]) if len(finite) > SMOOTHED else "",
        end=drawn[-1],
        first=ys[0],
        last=ys[-1],
        low=low,
        high=high,
        points=len(points),
        broken=len(points) - len(finite),
        x_ticks=[Tick(at_x(x), short(x)) for x in marks],
        y_ticks=[Tick(at_y(y), short(y)) for y in ticks(bottom, top, 4)],
        baseline=at_y(0.0) if bottom < 0 < top else None,
    )


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _span(low: float, high: float) -> tuple[float, float]:
    """What the axis covers: a little more than the values; from 0 where that costs little."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    if 0 <= low <= 0.35 * high:
        low = 0.0
    room = 0.04 * (high - low)
    return (low if low == 0 else low - room), high + room
