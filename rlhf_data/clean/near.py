"""Near-duplicates: texts whose n-grams overlap, found by MinHash and banding, without comparing every two texts.

A signature belongs to a text alone, so it is computed once and kept. Two texts are near when the share of equal places
of their signatures, an unbiased estimate of the Jaccard similarity of their sets of n-grams with standard deviation
√(J(1−J)/places), reaches the threshold; a cluster is what such pairs connect. Which pairs are looked at is decided by
banding, and each is compared before it counts: clusters depend on the set of texts alone, not on their order or on the
number of threads.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlhf_data.clean.ngrams import UNITS, char_ngrams, listed, word_ngrams

PLACES = 128  # of a signature: 512 bytes a text
NGRAM = {"char": 5, "word": 3}
RECALL = 0.99  # of two texts exactly at the threshold, at least this often one band agrees
_SEED = 42
_CHUNK = 4096  # texts hashed at once: some 20 MB
_BLOCK = 1 << 15  # pairs of signatures compared at once: some 40 MB
_SMALL = 16  # the largest bucket of which all pairs are compared

Signatures = NDArray[np.uint32]


def signatures(
    texts: pl.Series | Sequence[str], *, unit: str = "char", ngram: int | None = None, places: int = PLACES
) -> Signatures:
    """The MinHash signature of each text.

    Args:
        texts: texts, normalised here (NFKC, case, white space).
        unit: n-grams of "char", which serve every script, or of "word".
        ngram: how many of them; by default 5 characters or 3 words.
        places: numbers in a signature.

    Returns:
        (texts, places) UInt32; row i depends on text i alone. Texts without any n-gram share one signature.

    Raises:
        ValueError: an unknown unit, or a text that is null.

    Source: Broder 1997, "On the resemblance and containment of documents"; computed by rensa.
    """
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)

    if unit not in UNITS:
        raise ValueError(f"no unit {unit!r}; known units: {', '.join(UNITS)}")
    held, n = listed(texts), ngram or NGRAM[unit]
    made = np.empty((len(held), places), dtype=np.uint32)
    for start in range(0, len(held), _CHUNK):
        part = held[start : start + _CHUNK]
        hashed = char_ngrams(part, n) if unit == "char" else word_ngrams(part, n)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashed.hashes, hashed.offsets.astype(np.uint64), places, _SEED
        )
        made[start : start + len(part)] = matrix.to_rows()
    return made


def method(*, unit: str = "char", ngram: int | None = None, places: int = PLACES) -> str:
    """What signatures were made by: those of another method must not be compared with them."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)

    return f"rensa{RMinHash.ALGORITHM_VERSION}-{unit}{ngram or NGRAM[unit]}-{places}-{_SEED}"


def bands(threshold: float, places: int = PLACES) -> tuple[int, int]:
    """How many bands of how many places: the widest that miss at most 1 − RECALL of the pairs at the threshold.

    >>> bands(0.9)
    (12, 10)
    """
    for rows in range(places, 0, -1):
        count = places // rows
        if 1.0 - (1.0 - threshold**rows) ** count >= RECALL:
            return count, rows
    return places, 1


def clusters(ids: pl.Series, signatures: Signatures, threshold: float) -> pl.Series:
    """The cluster of each text, named by its smallest id.

    Args:
        ids: content ids, or row numbers in the order of them; (n,).
        signatures: (n, places), all by one method.
        threshold: estimated Jaccard similarity from which two texts are near, above 0, at most 1.

    Returns:
        `ids` with each id replaced by the smallest of its cluster: a text without any near one keeps its own.

    Raises:
        ValueError: another number of ids than of signatures, or a threshold outside of (0, 1].
    """
    if ids.len() != len(signatures):
        raise ValueError(f"{ids.len()} ids but {len(signatures)} signatures; each text has one of each")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"near is {threshold:g}; it must be above 0 and at most 1")
    order = ids.arg_sort().to_numpy()  # so that the smallest row of a component is the one of the smallest id
    rank = np.empty(order.size, dtype=np.int64)
    rank[order] = np.arange(order.size)
    roots = _components(signatures, order, threshold)
    return ids.gather(order[roots[rank]]).alias("cluster")


def prompt_clusters(
    prompt_ids: pl.Series, texts: pl.Series | Sequence[str], threshold: float, *, unit: str = "char"
) -> pl.Series:
    """The key that near-duplicate prompts share, so that a split by hash of the key keeps them on one side.

    A prompt without near-duplicates keeps its own id as its key: it stands where a split without clusters puts it.
    Hand in the normalised roots (`split_key`) for ids, each once with its root's text, and conversations stay together
    too.
    """
    return clusters(prompt_ids, signatures(texts, unit=unit), threshold)


def _components(signatures: Signatures, order: NDArray[np.integer], threshold: float) -> NDArray[np.int64]:
    """The smallest row of each row's component; row i is signatures[order[i]]."""
    wanted = int(np.ceil(threshold * signatures.shape[1] - 1e-9))
    # Equal texts first: a thousand copies are one text afterwards, not half a million pairs in every band.
    roots = _first_of_equal(signatures, order)
    alone = np.flatnonzero(roots == np.arange(order.size))
    count, width = bands(threshold, signatures.shape[1])
    for band in range(count):
        keys = _keys(signatures, order[alone], slice(band * width, (band + 1) * width))
        for buckets in _buckets(keys):
            if buckets.shape[1] > _SMALL:
                for bucket in buckets:
                    _grow(signatures, order, alone[bucket], wanted, roots)
                continue
            left, right = np.triu_indices(buckets.shape[1], k=1)
            step = max(_BLOCK // left.size, 1)
            for start in range(0, len(buckets), step):
                block = alone[buckets[start : start + step]]
                _join(signatures, order, block[:, left].ravel(), block[:, right].ravel(), wanted, roots)
    return roots


def _first_of_equal(signatures: Signatures, order: NDArray[np.integer]) -> NDArray[np.int64]:
    """The smallest row with the same signature, of each row."""
    firsts = np.arange(order.size)
    for buckets in _buckets(_keys(signatures, order, slice(None))):
        for start in range(0, len(buckets), step := max(_BLOCK // buckets.shape[1], 1)):
            block = buckets[start : start + step]
            for column in range(1, block.shape[1]):  # a bucket is one hash; that it is one signature is looked at
                equal = (signatures[order[block[:, column]]] == signatures[order[block[:, 0]]]).all(axis=1)
                firsts[block[equal, column]] = block[equal, 0]
    return firsts


def _keys(signatures: Signatures, rows: NDArray[np.integer], columns: slice) -> NDArray[np.uint64]:
    """A hash of some columns of each row; equal columns have equal hashes."""
    width = len(range(*columns.indices(signatures.shape[1])))
    factors = np.random.default_rng(_SEED).integers(1, 1 << 63, size=width, dtype=np.uint64) * 2 + 1
    keys = np.empty(rows.size, dtype=np.uint64)
    for start in range(0, rows.size, _BLOCK):
        block = signatures[rows[start : start + _BLOCK], columns].astype(np.uint64)
        keys[start : start + _BLOCK] = (block * factors).sum(axis=1, dtype=np.uint64)
    return keys


def _buckets(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """The places of equal keys, for all that stand more than once: (buckets, size), a size at a time, ascending."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)) != 0)
    sizes = np.diff(starts, append=keys.size)
    for size in np.unique(sizes[sizes > 1]):
        yield order[starts[sizes == size, None] + np.arange(size)]


def _join(
    signatures: Signatures,
    order: NDArray[np.integer],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    wanted: int,
    roots: NDArray[np.int64],
) -> None:
    """Connect the pairs (left, right) that agree in `wanted` places."""
    apart = roots[left] != roots[right]
    left, right = left[apart], right[apart]
    near = (signatures[order[left]] == signatures[order[right]]).sum(axis=1) >= wanted
    _connect(roots, left[near], right[near])


def _connect(roots: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Connect pairs, in place; a root is the smallest row of its component."""
    while (apart := roots[left] != roots[right]).any():
        ends = np.stack([roots[left[apart]], roots[right[apart]]])
        np.minimum.at(roots, ends.max(axis=0), ends.min(axis=0))
        while (higher := roots[roots] != roots).any():
            roots[higher] = roots[roots[higher]]


def _grow(
    signatures: Signatures,
    order: NDArray[np.integer],
    bucket: NDArray[np.int64],
    wanted: int,
    roots: NDArray[np.int64],
) -> None:
    """Connect all near pairs of a large bucket.

    Each row is compared with those that no cluster has taken in yet: of a thousand variants of one template, the first
    takes in nearly all.
    """
    rest = bucket
    while rest.size > 1:
        frontier, rest, found = [rest[0]], rest[1:], [rest[0]]
        while frontier and rest.size:
            row = frontier.pop()
            near = roots[rest] == roots[row]
            for start in range(0, rest.size, _BLOCK):
                block = rest[start : start + _BLOCK]
                agree = (signatures[order[block]] == signatures[order[row]]).sum(axis=1)
                near[start : start + _BLOCK] |= agree >= wanted
            frontier.extend(rest[near])
            found.extend(rest[near])
            rest = rest[~near]
        component = np.array(found)
        _connect(roots, np.full(component.size - 1, component[0]), component[1:])
