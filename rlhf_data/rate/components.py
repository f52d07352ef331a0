"""Who can be compared with whom: components of a graph of battles.

Vertices are numbered from 0; an edge is an entry of two arrays of vertices. All functions are exact and do not depend
on the order of edges.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def connected(n: int, first: Ints, second: Ints) -> Ints:
    """The smallest vertex of each vertex's connected component, (n,).

    >>> connected(4, np.array([3, 0]), np.array([1, 2])).tolist()
    [0, 1, 0, 1]
    """
    label = np.arange(n)
    while True:
        least = np.minimum(label[first], label[second])
        before = label.copy()
        np.minimum.at(label, first, least)
        np.minimum.at(label, second, least)
        # The root takes its smallest member's label too, so that whole trees merge and few rounds are needed.
        np.minimum.at(label, before[first], least)
        np.minimum.at(label, before[second], least)
        label = _compressed(label)
        if np.array_equal(label, before):
            return label


def strongly_connected(n: int, winner: Ints, loser: Ints, most: int) -> list[Ints]:
    """The first `most` strongly connected components of the graph winner → loser, each sorted, by smallest vertex.

    Bradley–Terry strengths without a prior are finite exactly where there is one such component (Ford 1957).
    """
    found: list[Ints] = []
    left = np.ones(n, dtype=bool)
    while left.any() and len(found) < most:
        start = int(np.argmax(left))
        members = _reached(n, winner, loser, start) & _reached(n, loser, winner, start)
        found.append(np.flatnonzero(members))
        left &= ~members
    return found


def _reached(n: int, tail: Ints, head: Ints, start: int) -> NDArray[np.bool_]:
    reached = np.zeros(n, dtype=bool)
    reached[start] = True
    while True:
        new = head[reached[tail] & ~reached[head]]
        if not len(new):
            return reached
        reached[new] = True


def _compressed(label: Ints) -> Ints:
    while not np.array_equal(label, higher := label[label]):
        label = higher
    return label
