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
Bits = NDArray[np.uint64]  # (words of 64 places, 2, rows)


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
    compared = _Compared(signatures, order, threshold)
    # Equal texts first: a thousand copies are one text afterwards, not half a million pairs in every band.
    roots = _first_of_equal(signatures, order)
    alone = np.flatnonzero(roots == np.arange(order.size))
    count, width = bands(threshold, signatures.shape[1])
    for band in range(count):
        keys = _keys(signatures, order[alone], slice(band * width, (band + 1) * width))
        for buckets in _buckets(keys):
            if buckets.shape[1] > _SMALL:
                for bucket in buckets:
                    _grow(compared, alone[bucket], roots)
                continue
            left, right = np.triu_indices(buckets.shape[1], k=1)
            step = max(_BLOCK // left.size, 1)
            for start in range(0, len(buckets), step):
                block = alone[buckets[start : start + step]]
                _join(compared, block[:, left].ravel(), block[:, right].ravel(), roots)
    return roots


class _Compared:
    """Which rows agree in enough places; row i is signatures[order[i]].

    Two bits of each place tell most of those apart that do not, at a sixteenth of the bytes: where more places than may
    differ do so in these bits alone, the rest need not be looked at.
    """

    def __init__(self, signatures: Signatures, order: NDArray[np.integer], threshold: float) -> None:
        self._signatures, self._order = signatures, order
        self._wanted = int(np.ceil(threshold * signatures.shape[1] - 1e-9))
        self._bits = _low_bits(signatures, order)

    def near(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of each pair of rows."""
        return self._agree(left, right, self._may_agree(self.bits_of(left), self.bits_of(right)))

    def near_of(self, rows: NDArray[np.int64], others: NDArray[np.int64], bits: Bits) -> NDArray[np.bool_]:
        """(rows, others): of each row and each of the others, whose bits are given."""
        may = self._may_agree(self.bits_of(rows)[..., None], bits[..., None, :])
        row, other = np.nonzero(may)
        may[row, other] = self._agree(rows[row], others[other], np.ones(row.size, bool))
        return may

    def bits_of(self, rows: NDArray[np.int64]) -> Bits:
        return self._bits[:, :, rows]

    def _may_agree(self, left: Bits, right: Bits) -> NDArray[np.bool_]:
        unlike = sum(np.bitwise_count((a[0] ^ b[0]) | (a[1] ^ b[1])) for a, b in zip(left, right, strict=True))
        return unlike <= self._signatures.shape[1] - self._wanted

    def _agree(self, left: NDArray[np.int64], right: NDArray[np.int64], asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`asked`, without the pairs whose whole signatures agree in too few places."""
        at = np.flatnonzero(asked)
        for start in range(0, at.size, _BLOCK):
            block = at[start : start + _BLOCK]
            agree = self._signatures[self._order[left[block]]] == self._signatures[self._order[right[block]]]
            asked[block] = np.count_nonzero(agree, axis=1) >= self._wanted
        return asked


def _low_bits(signatures: Signatures, order: NDArray[np.integer]) -> Bits:
    """Two bits of each place; one word of all rows lies in a row."""
    places = signatures.shape[1]
    words = -(-places // 64)
    bits = np.zeros((words, 2, order.size), np.uint64)
    for start in range(0, order.size, _CHUNK):
        block = np.zeros((min(_CHUNK, order.size - start), words * 64), np.uint8)
        block[:, :places] = signatures[order[start : start + _CHUNK]] & 3
        for bit in (0, 1):
            packed = np.packbits(block >> bit & 1, axis=1).view(np.uint64)
            bits[:, bit, start : start + _CHUNK] = packed.T
    return bits


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


def _join(compared: _Compared, left: NDArray[np.int64], right: NDArray[np.int64], roots: NDArray[np.int64]) -> None:
    """Connect the pairs (left, right) that are near."""
    apart = roots[left] != roots[right]
    left, right = left[apart], right[apart]
    near = compared.near(left, right)
    _connect(roots, left[near], right[near])


def _connect(roots: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Connect pairs, in place; a root is the smallest row of its component."""
    while (apart := roots[left] != roots[right]).any():
        ends = np.stack([roots[left[apart]], roots[right[apart]]])
        np.minimum.at(roots, ends.max(axis=0), ends.min(axis=0))
        while (higher := roots[roots] != roots).any():
            roots[higher] = roots[roots[higher]]


def _grow(compared: _Compared, bucket: NDArray[np.int64], roots: NDArray[np.int64]) -> None:
    """Connect all near pairs of a large bucket.

    A cluster that is found grows until no row is near it, and its rows are compared with no other: of a thousand
    variants of one template, the first takes in nearly all. Where none is found, many rows are compared at a time.
    """
    rest, bits, step = bucket, compared.bits_of(bucket), 1
    while rest.size > 1:
        step = max(1, min(step, _BLOCK // rest.size))
        near = compared.near_of(rest[:step], rest, bits)
        found = np.flatnonzero(np.triu(near, k=1).any(axis=1))
        passed = found[0] if found.size else step
        rest, bits, step = rest[passed:], bits[:, :, passed:], 1 if found.size else 2 * step
        if found.size:
            rest, bits = _take(compared, rest, bits, roots)


def _take(
    compared: _Compared, rest: NDArray[np.int64], bits: Bits, roots: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Bits]:
    """Connect the first row with all that near pairs connect it with; what is left of rows and bits."""
    first, frontier = rest[0], rest[:1]
    rest, bits = rest[1:], bits[:, :, 1:]
    while frontier.size and rest.size:
        step = max(1, min(8, _BLOCK // rest.size))
        near = (roots[rest] == roots[first]) | compared.near_of(frontier[:step], rest, bits).any(axis=0)
        found = rest[near]
        if found.size:
            _connect(roots, np.full(found.size, first), found)
            rest, bits = rest[~near], bits[:, :, ~near]
        frontier = np.concatenate([frontier[step:], found])
    return rest, bits
