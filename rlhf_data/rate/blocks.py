"""Block-diagonal symmetric matrices: one dense block per group of vertices, blocks of one size side by side.

The blocks of a comparison graph's components are small and many (the answers to a prompt) or one and large (the models
of an arena). Both are inverted here by the same few array operations, without BLAS, whose digits depend on the number
of threads.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST = 5_000  # vertices of one block: 200 MB, and a minute to invert
_CACHED = 16_384  # numbers that are worked on at once, so that they stay in the processor's cache
_PANEL = 32


class Layout(NamedTuple):
    """Where the vertices and the entries of the blocks stand.

    Attributes:
        order: (n,) the vertex at each place; places of a block are consecutive.
        place: (n,) the place of each vertex.
        start: (n,) by place: the index of the first entry of this row of the matrix among all entries.
        local: (n,) by place: the column of this vertex in its block.
        runs: (size of a block, number of blocks, first place, first entry) of each size that occurs.
    """

    order: Ints
    place: Ints
    start: Ints
    local: Ints
    runs: list[tuple[int, int, int, int]]

    @property
    def entries(self) -> int:
        """The number of entries of all blocks."""
        return sum(size * size * count for size, count, _, _ in self.runs)


def layout(group: Ints) -> Layout:
    """The layout of blocks given the group of each vertex, (n,), any integers from 0.

    Raises:
        ValueError: a group of more than LARGEST vertices.
    """
    n = len(group)
    size = np.bincount(group)[group] if n else np.zeros(0, dtype=np.int64)
    if n and size.max() > LARGEST:
        raise ValueError(
            f"{size.max():,} of {n:,} are connected by battles; at most {LARGEST:,} can be rated together: rate "
            "models, or fewer answers of a prompt"
        )
    order = np.lexsort((np.arange(n), group, size))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    runs: list[tuple[int, int, int, int]] = []
    start, local = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    places = entries = 0
    for width, members in zip(*np.unique(size, return_counts=True), strict=True):
        k, count = int(width), int(members // width)
        runs.append((k, count, places, entries))
        local[places : places + members] = np.tile(np.arange(k), count)
        start[places : places + members] = entries + k * np.arange(members)
        places, entries = places + int(members), entries + k * int(members)
    return Layout(order, place, start, local, runs)


def entry(where: Layout, row: Ints, column: Ints) -> Ints:
    """The index of an entry among all entries, given the places of its row and column in one block."""
    return where.start[row] + where.local[column]


def pairs(where: Layout) -> tuple[Ints, Ints]:
    """The places of the row and the column of every entry, in the order of entries."""
    rows, columns = [], []
    for k, count, first, _ in where.runs:
        places = first + np.arange(count * k).reshape(count, k)
        rows.append(np.repeat(places, k, axis=1).ravel())
        columns.append(np.tile(places, (1, k)).ravel())
    empty = [np.zeros(0, dtype=np.int64)]
    return np.concatenate(rows or empty), np.concatenate(columns or empty)


def views(where: Layout, entries: Floats) -> list[Floats]:
    """The blocks of each size, (count, size, size), sharing memory with `entries`."""
    return [entries[at : at + k * k * count].reshape(count, k, k) for k, count, _, at in where.runs]


def invert(where: Layout, entries: Floats) -> Floats:
    """The inverse of each (positive definite) block, in the place of the block; returns `entries`."""
    for block in views(where, entries):
        sweep(block)
    return entries


def sweep(matrices: Floats) -> Floats:
    """Invert symmetric positive definite matrices (count, k, k) in place: Gauss–Jordan elimination, no pivots needed.

    >>> sweep(np.array([[[4.0, 2.0], [2.0, 2.0]]])).tolist()
    [[[0.5, -0.5], [-0.5, 1.0]]]
    """
    count, k = matrices.shape[:2]
    if k > _PANEL:
        for matrix in matrices:
            _sweep_panels(matrix)
    elif k:
        together = max(1, _CACHED // (k * k))
        for at in range(0, count, together):
            _sweep_columns(matrices[at : at + together])
    return matrices


def _sweep_columns(matrices: Floats) -> None:
    """One column at a time, of many small matrices at once."""
    for p in range(matrices.shape[-1]):
        pivot = matrices[:, p, p, None].copy()
        column = matrices[:, :, p].copy()
        row = matrices[:, p, :] / pivot
        matrices -= column[:, :, None] * row[:, None, :]
        matrices[:, p, :] = row
        matrices[:, :, p] = -column / pivot
        matrices[:, p, p] = 1.0 / pivot[:, 0]


def _sweep_panels(matrix: Floats) -> None:
    """Many columns of one matrix at a time: einsum multiplies in one pass over memory, and never by BLAS."""
    for at in range(0, len(matrix), _PANEL):
        panel = slice(at, at + _PANEL)
        pivot = matrix[panel, panel].copy()
        _sweep_columns(pivot[None])
        columns = matrix[:, panel].copy()
        rows = np.einsum("pq,qj->pj", pivot, matrix[panel])
        matrix -= np.einsum("ip,pj->ij", columns, rows)
        matrix[panel] = rows
        matrix[:, panel] = -np.einsum("ip,pq->iq", columns, pivot)
        matrix[panel, panel] = pivot


def multiply(where: Layout, entries: Floats, columns: Floats) -> Floats:
    """The product of the matrix and columns (n, q), by place; (n, q)."""
    product = np.empty_like(columns)
    for (k, count, first, _), block in zip(where.runs, views(where, entries), strict=True):
        part = columns[first : first + k * count].reshape(count, k, -1)
        product[first : first + k * count] = np.einsum("gij,gjq->giq", block, part).reshape(k * count, -1)
    return product


def diagonal(where: Layout, entries: Floats) -> Floats:
    """The diagonal, by place; (n,)."""
    return entries[where.start + where.local]
