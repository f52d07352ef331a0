"""Texts as bags of hashed n-grams, of characters or of words, without a loop over characters.

A text is normalised first: NFKC, case-folded, white space collapsed. All texts of a call lie in one array of code
points; an n-gram is a polynomial of them, mixed to 64 bits. Hashes depend on nothing but the n-gram, so that they can
be kept and compared with those of another run or machine.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

UNITS = ("char", "word")
_BASE = 0x9E3779B97F4A7C15  # odd: every power of it is invertible
_LAST_POINT = 0x110000
# Scripts written without spaces between words; each character of them is a word.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class Hashed(NamedTuple):
    """Hashes of the n-grams of several texts, one text after the other.

    Attributes:
        hashes: (total,) UInt64.
        offsets: (texts + 1,) Int64; text i has hashes[offsets[i]:offsets[i + 1]].
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]


def normalised(text: str) -> str:
    """What decides whether two texts are the same but for their form.

    >>> normalised("  Ｈello   WORLD ")
    'hello world'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def char_ngrams(texts: Iterable[str], n: int) -> Hashed:
    """Every run of n characters of each normalised text; a shorter text is one n-gram, an empty one has none."""
    points, lengths = _code_points([normalised(text) for text in texts])
    return _windows(_mix(points.astype(np.uint64) + np.uint64(1)), lengths, n)


def words(texts: Iterable[str]) -> Hashed:
    """The words of each normalised text, hashed: runs of letters, marks and digits; each character of a script without
    spaces (Chinese, Japanese, Thai, …) by itself.
    """
    points, lengths = _code_points([normalised(text) for text in texts])
    kinds = _kinds()[points]
    inside = kinds > 0
    begins = np.ones(points.size, dtype=bool)  # of a word, where inside
    begins[1:] = ~inside[:-1] | (kinds[1:] == 2) | (kinds[:-1] == 2)
    first = np.cumsum(lengths) - lengths
    begins[first[lengths > 0]] = True
    starts = np.flatnonzero(begins & inside)
    if not starts.size:
        return Hashed(np.zeros(0, dtype=np.uint64), np.zeros(lengths.size + 1, dtype=np.int64))
    # Σ mix(c) · B^(place in the word); what is outside of words adds 0, so a word's sum may run on to the next start.
    word_of = np.maximum(np.cumsum(begins & inside) - 1, 0)
    place = np.arange(points.size) - starts[word_of]
    place[~inside] = 0
    terms = _mix(points.astype(np.uint64) + np.uint64(1)) * _powers(int(place.max()) + 1)[place]
    terms[~inside] = 0
    hashes = _mix(np.add.reduceat(terms, starts))
    return Hashed(hashes, np.searchsorted(starts, np.append(first, points.size)).astype(np.int64))


def word_ngrams(texts: Iterable[str], n: int) -> Hashed:
    """Every run of n words of each text; a text of fewer words is one n-gram, one without words has none."""
    hashed = words(texts)
    return _windows(hashed.hashes, np.diff(hashed.offsets), n)


def listed(texts: pl.Series | Sequence[str]) -> list[str]:
    """Texts as a list.

    Raises:
        ValueError: one of them is null.
    """
    if isinstance(texts, pl.Series) and texts.null_count():
        raise ValueError(f"{texts.null_count()} of {texts.len()} texts are null; a text may be empty, but not null")
    return texts.to_list() if isinstance(texts, pl.Series) else list(texts)


def _code_points(texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    # A JSON file may hold half of a surrogate pair, which is no character but must not stop anyone.
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points, np.array([len(text) for text in texts], dtype=np.int64)


def _windows(items: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> Hashed:
    """Hashes of all runs of n items within each text; a shorter text, if it has any items, is one run."""
    if n < 1:
        raise ValueError(f"n-grams of {n}: n must be at least 1")
    padding = np.arange(lengths.size) * (n - 1)  # n − 1 zeros after each text: no run reaches into the next one
    padded = np.zeros(items.size + lengths.size * (n - 1), dtype=np.uint64)
    padded[np.arange(items.size) + np.repeat(padding, lengths)] = items
    size = max(padded.size - n + 1, 0)
    runs = np.zeros(size, dtype=np.uint64)
    for k, power in enumerate(_powers(n)):
        runs += padded[k : k + size] * power
    counts = np.maximum(lengths - (n - 1), np.minimum(lengths, 1))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    begin = np.cumsum(lengths) - lengths + padding
    chosen = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], counts)
    return Hashed(_mix(runs[chosen]), offsets.astype(np.int64))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of 64 bits that leaves 0 where it is."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _powers(count: int) -> NDArray[np.uint64]:
    """The first `count` powers of the base, from its first; modulo 2^64."""
    return np.cumprod(np.full(count, _BASE, dtype=np.uint64))


@cache
def _kinds() -> NDArray[np.uint8]:
    """Of every code point: 0 stands between words, 1 is part of a word, 2 is a word by itself."""
    kinds = np.fromiter(
        (unicodedata.category(chr(point))[0] in "LMN" for point in range(_LAST_POINT)),
        dtype=np.uint8,
        count=_LAST_POINT,
    )
    for low, high in _UNSPACED:
        kinds[low : high + 1] *= 2
    return kinds
