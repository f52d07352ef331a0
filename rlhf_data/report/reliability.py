"""A reward model's reliability as a picture: how sure it is of its choice, and how often raters agree."""

from typing import Any, NamedTuple

LEFT, RIGHT, TOP, BOTTOM = 44.0, 244.0, 12.0, 212.0  # both axes go from 0.5 or below to 1, a square


class Bin(NamedTuple):
    """One bin of pairs: its figures, and its place in the picture; `radius` grows with the root of n."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    x: float
    y: float
    radius: float


class Picture(NamedTuple):
    """The reliability of all held-out pairs.

    Attributes:
        bins: those with pairs in them, the least sure first.
        least: where the axis of agreement starts; that of certainty starts at 0.5.
        diagonal: path of what a calibrated model would show.
        y_ticks: (place, value) on the axis of agreement.
    """

    bins: list[Bin]
    least: float
    diagonal: str
    y_ticks: list[tuple[float, float]]


def picture(evaluation: dict[str, Any] | None) -> Picture | None:
    """The picture of an evaluation's `calibration`, see `training.compare`; None where there is none."""
    parts = (evaluation or {}).get("calibration") or []
    told = next((part["bins"] for part in parts if part["group"] is None), [])
    if not told:
        return None
    least = 0.5 if min(one["accuracy"] for one in told) >= 0.5 else 0.0
    most = max(one["n"] for one in told)

    def at_y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - least) / (1 - least), 1)

    def at_x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - 0.5) / 0.5, 1)

    bins = [
        Bin(
            **one, x=at_x(one["confidence"]), y=at_y(one["accuracy"]), radius=round(3 + 6 * (one["n"] / most) ** 0.5, 1)
        )
        for one in told
    ]
    steps = [least + k * (1 - least) / 5 for k in range(6)]
    diagonal = f"M{at_x(0.5)} {at_y(0.5)}L{at_x(1.0)} {at_y(1.0)}"
    return Picture(bins, least, diagonal, [(at_y(value), round(value, 2)) for value in steps])
