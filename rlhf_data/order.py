"""Which rows each optimizer step takes: a function of the rows' ids, the seed and the step, and of nothing else.

Rows are ranked by a keyed hash of their ids, so arriving rows move no others. How a ranking is cut into steps depends
on what the rule demands of a step: whole groups, both classes, no step smaller than the others.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from xxhash import xxh3_64_intdigest


def order(ids: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, (n,): rows ranked by a keyed hash of their ids, equal hashes by number.

    >>> order(["a", "b", "c"], seed=0, epoch=0).tolist() == order(["a", "b", "c"], seed=0, epoch=0).tolist()
    True
    """
    key = xxh3_64_intdigest(f"order:{seed}:{epoch}".encode())
    hashes = np.fromiter((xxh3_64_intdigest(name.encode(), seed=key) for name in ids), np.uint64, len(ids))
    return np.argsort(hashes, kind="stable")


def epoch_batches(
    ids: Sequence[str],
    *,
    size: int,
    seed: int,
    epoch: int,
    groups: Sequence[str] | np.ndarray | None = None,
    labels: Sequence[bool] | np.ndarray | None = None,
    even: bool = False,
) -> list[np.ndarray]:
    """Row numbers of each step of one epoch, every row in one step.

    Args:
        ids: of the rows.
        size: rows of a step; on average, where rows stay together or steps are even.
        seed: of the ranking.
        epoch: counted from 0.
        groups: rows of the same name are never parted: a step is as many whole groups as have `size` rows on average,
            at least one.
        labels: the class of each row: both classes are spread over the steps alike, so that every step has rows of
            both where each class has as many rows as there are steps. Steps are then even, up to one row a class.
        even: an epoch ends without a small step: what is left over is spread over the others.

    >>> [len(rows) for rows in epoch_batches(list("abcdefg"), size=3, seed=0, epoch=0)]
    [3, 3, 1]
    >>> [len(rows) for rows in epoch_batches(list("abcdefg"), size=3, seed=0, epoch=0, even=True)]
    [3, 4]
    """
    assert groups is None or labels is None  # no rule asks for whole groups and for both classes
    unit, names = (np.arange(len(ids)), ids) if groups is None else _numbered(groups)
    n, even = len(names), even or labels is not None
    steps = _steps(n, len(ids), size, even)
    ranked = order(names, seed=seed, epoch=epoch)
    step_of = np.empty(n, np.int64)
    if labels is not None:
        classes = np.asarray(labels, bool)[ranked]
        for member in (ranked[classes], ranked[~classes]):
            step_of[member] = _spread(len(member), steps)
    else:
        step_of[ranked] = _spread(n, steps) if even else np.arange(n) // _units(n, len(ids), size)
    rank = np.empty(n, np.int64)
    rank[ranked] = np.arange(n)
    rows = np.lexsort((rank[unit], step_of[unit]))  # stable: rows of a group keep their order
    return np.split(rows, np.searchsorted(step_of[unit][rows], np.arange(1, steps)))


def batches_from(
    step: int,
    ids: Sequence[str],
    *,
    size: int,
    seed: int,
    groups: Sequence[str] | np.ndarray | None = None,
    labels: Sequence[bool] | np.ndarray | None = None,
    even: bool = False,
    begins: Callable[[int, list[np.ndarray]], None] | None = None,
) -> Iterator[list[int]]:
    """Row numbers of each optimizer step from `step` (counted from 0) on, epoch after epoch, without end.

    A function of the seed and the step alone, so a resumed run needs no other memory. See `epoch_batches`; `begins` is
    told the number and the batches of each epoch before its first step.

    Raises:
        ValueError: `labels` are given, and one class has too few rows to be in every step.

    >>> next(batches_from(0, ["a", "b", "c", "d"], size=2, seed=0, groups=["p", "q", "q", "p"])) in ([0, 3], [1, 2])
    True
    """
    epoch, at = divmod(step, steps_of_epoch(ids, size=size, groups=groups, even=even or labels is not None))
    if labels is not None:
        _require_classes(labels, size)
    while True:
        made = epoch_batches(ids, size=size, seed=seed, epoch=epoch, groups=groups, labels=labels, even=even)
        if begins is not None:
            begins(epoch, made)
        for rows in made[at:]:
            yield rows.tolist()
        epoch, at = epoch + 1, 0


def steps_of_epoch(
    ids: Sequence[str], *, size: int, groups: Sequence[str] | np.ndarray | None = None, even: bool = False
) -> int:
    """Optimizer steps of one pass over the rows, as `batches_from` makes them; those with labels are even."""
    return _steps(len(ids) if groups is None else len(set(groups)), len(ids), size, even)


def share(tokens: Sequence[int], rank: int, world: int) -> list[int]:
    """Positions of a step's rows that one of `world` processes runs, ascending; each row goes to exactly one.

    The longest row left goes to the process with the fewest tokens so far, so that none waits long for the others.

    Args:
        tokens: that each row of the step runs.
        rank: which process, from 0.
        world: how many there are.

    >>> [share([5, 1, 3, 3], rank, 2) for rank in (0, 1)]
    [[0, 1], [2, 3]]
    """
    load, taken = [0] * world, [0] * world
    mine = []
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        to = min(range(world), key=lambda r: (load[r], taken[r], r))
        load[to] += tokens[i]
        taken[to] += 1
        if to == rank:
            mine.append(i)
    return sorted(mine)


def _require_classes(labels: Sequence[bool] | np.ndarray, size: int) -> None:
    n, desirable = len(labels), int(np.count_nonzero(labels))
    steps, fewest = _steps(n, n, size, even=True), min(desirable, n - desirable)
    if fewest >= steps:
        return
    what = "desirable" if desirable == fewest else "undesirable"
    cure = f"set batch_size to {n // (fewest + 1) + 1} or more" if fewest else "label rows of both classes"
    raise ValueError(
        f"this rule compares desirable with undesirable rows in every step, but of {n} rows {fewest} are {what}, "
        f"for {steps} steps: {cure}, or take a rule that looks at each row alone, such as apo_zero_unpaired"
    )


def _numbered(groups: Sequence[str] | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of each row's group, (n,), and the groups' names, in the order of their first rows."""
    numbers: dict[str, int] = {}
    of = np.fromiter((numbers.setdefault(name, len(numbers)) for name in groups), np.int64, len(groups))
    return of, list(numbers)


def _spread(n: int, steps: int) -> np.ndarray:
    """The step of each of `n` ranked rows, (n,), as evenly as can be; no step without a row where n ≥ steps."""
    return (2 * np.arange(n) + 1) * steps // (2 * max(n, 1))


def _steps(units: int, rows: int, size: int, even: bool) -> int:
    taken = _units(units, rows, size)
    return max(1, units // taken) if even else math.ceil(units / taken)


def _units(units: int, rows: int, size: int) -> int:
    """Rows, or whole groups, of a batch of `size` rows."""
    return size if units == rows else max(1, round(size * units / rows))
