"""Elo: ratings that move with every battle, for those who want the numbers of an arena or a chess federation.

Elo depends on the order of battles: the same battles in another order give other ratings, and the latest count most.
Bradley–Terry has neither property; take it unless the strengths themselves change over time.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def elo(
    first: ArrayLike,
    second: ArrayLike,
    value: ArrayLike,
    n: int,
    *,
    k: float = 4.0,
    base: float = 10.0,
    scale: float = 400.0,
    start: float = 1000.0,
) -> NDArray[np.float64]:
    """Ratings of n contestants after battles in the order given.

        R_first ← R_first + k · (value − 1 / (1 + base^((R_second − R_first) / scale))), and the same off R_second

    Args:
        first: (battles,) who met, numbers from 0 to n − 1, the earliest battle first.
        second: (battles,) whom.
        value: (battles,) points of first, 0 to 1; 0.5 is a tie.
        n: how many there are.
        k: most points that one battle moves, > 0; arenas of many battles use 4, chess 10 to 40.
        base: odds of winning that a lead of `scale` stands for, > 1.
        scale: > 0; with base 10 and scale 400, a lead of 400 wins ten of eleven.
        start: everyone's rating before the first battle, and so their mean for ever.

    Returns:
        (n,) ratings.

    Raises:
        ValueError: a parameter out of its range; a value that is no probability.

    Source: Elo 1978, The Rating of Chessplayers; K, base, scale and start as in Chatbot Arena (Chiang et al. 2024).

    >>> elo([0], [1], [1.0], 2, k=32.0).tolist()
    [1016.0, 984.0]
    """
    for name, wrong, rule in (
        ("k", not 0.0 < k < np.inf, "> 0"),
        ("base", not 1.0 < base < np.inf, "> 1"),
        ("scale", not 0.0 < scale < np.inf, "> 0"),
        ("start", not np.isfinite(start), "finite"),
    ):
        if wrong:
            raise ValueError(f"elo: {name} must be {rule}")
    points = np.asarray(value, dtype=np.float64)
    if (wrong := ~((points >= 0.0) & (points <= 1.0))).any():
        raise ValueError(f"{wrong.sum()} of {len(points)} battles have a value that is no probability (0 to 1)")
    rating = [float(start)] * n
    log_odds = np.log(base) / scale
    # One battle after another: each depends on the last. Python's own floats are quicker here than numpy's.
    for i, j, y in zip(np.asarray(first).tolist(), np.asarray(second).tolist(), points.tolist(), strict=True):
        lead = min(max(log_odds * (rating[i] - rating[j]), -700.0), 700.0)  # e^710 leaves the floats
        moved = k * (y - 1.0 / (1.0 + math.exp(-lead)))
        rating[i] += moved
        rating[j] -= moved
    return np.array(rating, dtype=np.float64)
