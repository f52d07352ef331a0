"""N-grams of characters and of words, hashed all at once, are those that a loop over each text finds."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.clean import ngrams

# Letters of several lengths in bytes, marks, digits, what stands between words, and what folds into several characters.
TEXTS = st.lists(st.text(alphabet="abAB 1é\n\t.,'-中文カÉßﬁ①𝒳", max_size=30), max_size=6)


def bags(hashed: ngrams.Hashed) -> list[list[int]]:
    return [hashed.hashes[a:b].tolist() for a, b in zip(hashed.offsets[:-1], hashed.offsets[1:], strict=True)]


def runs(items, n):
    """All runs of n items, or the one of all of them where there are fewer."""
    return [tuple(items[k : k + n]) for k in range(max(len(items) - n + 1, min(len(items), 1)))]


def one_to_one(found: list[list[int]], wanted: list[list]) -> bool:
    """Whether hashes stand for the same things in the same order, and different ones for different things."""
    pairs = {(h, w) for hashes, things in zip(found, wanted, strict=True) for h, w in zip(hashes, things, strict=True)}
    return len(pairs) == len({h for h, _ in pairs}) == len({w for _, w in pairs})


@given(TEXTS, st.integers(1, 6))
def test_character_n_grams_are_the_runs_of_each_normalised_text(texts, n):
    assert one_to_one(bags(ngrams.char_ngrams(texts, n)), [runs(ngrams.normalised(text), n) for text in texts])


def spelt(text: str) -> list[str]:
    return re.findall(r"[中文カ]|(?:(?![中文カ_])\w)+", ngrams.normalised(text))


@settings(deadline=None)  # the first call reads the categories of all characters
@given(TEXTS, st.integers(1, 4))
def test_word_n_grams_are_the_runs_of_words_and_a_chinese_character_is_a_word(texts, n):
    assert one_to_one(bags(ngrams.words(texts)), [spelt(text) for text in texts])
    assert one_to_one(bags(ngrams.word_ngrams(texts, n)), [runs(spelt(text), n) for text in texts])


@settings(deadline=None)
@given(TEXTS)
def test_hashes_of_a_text_do_not_depend_on_its_neighbours(texts):
    for hashed in (ngrams.char_ngrams, ngrams.word_ngrams):
        assert bags(hashed(texts, 3)) == [bags(hashed([text], 3))[0] for text in texts]


def test_hashes_are_the_same_on_every_machine():
    # Two characters by hand: Σ mix(c + 1) · Bᵏ, mixed; mix is splitmix64's finaliser.
    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    base = 0x9E3779B97F4A7C15
    wanted = mix((mix(ord("a") + 1) * base + mix(ord("b") + 1) * base**2) % 2**64)
    assert ngrams.char_ngrams(["ab"], 2).hashes.tolist() == [wanted]


def test_case_width_and_white_space_do_not_matter():
    first, second = bags(ngrams.char_ngrams(["Ｓtraße\n 1", " strasse 1 "], 4))
    assert first == second


def test_half_a_surrogate_pair_stops_nobody():
    assert len(bags(ngrams.words(["a \ud800 b"]))[0]) == 2


def test_a_null_is_refused():
    with pytest.raises(ValueError, match="1 of 2 texts are null"):
        ngrams.listed(pl.Series(["a", None]))


def test_runs_of_no_item_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1"):
        ngrams.char_ngrams(["a"], 0)


def test_no_texts_have_no_n_grams():
    for hashed in (ngrams.char_ngrams([], 5), ngrams.word_ngrams([], 3), ngrams.words([])):
        assert hashed.hashes.size == 0
        assert np.array_equal(hashed.offsets, [0])
