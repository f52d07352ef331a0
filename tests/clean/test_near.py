"""Near-duplicates are what brute force over sets of n-grams finds, whatever the order of the texts."""

import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.clean import near
from rlhf_data.clean.ngrams import normalised

WORDS = ["the", "a", "of", "river", "stone", "glass", "write", "poem", "short", "about", "why", "does", "light", "bend"]


def shingles(text: str, n: int = 5) -> set[str]:
    flat = normalised(text)
    return {flat[k : k + n] for k in range(max(len(flat) - n + 1, min(len(flat), 1)))}


def similarities(texts: list[str]) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of every two texts, by brute force."""
    sets = [shingles(text) for text in texts]
    shared = {(i, j): len(sets[i] & sets[j]) for i, j in combinations(range(len(sets)), 2)}
    return {(i, j): n / (len(sets[i]) + len(sets[j]) - n) for (i, j), n in shared.items()}


def connected(count: int, pairs) -> list[int]:
    """The smallest row of each row's component, by relabelling."""
    roots = list(range(count))
    for first, second in pairs:
        old, new = sorted((roots[first], roots[second]), reverse=True)
        roots = [new if root == old else root for root in roots]
    return roots


def together(keys) -> set[tuple[int, int]]:
    keys = list(keys)
    return {(i, j) for i, j in combinations(range(len(keys)), 2) if keys[i] == keys[j]}


def drafts(count: int, seed: int = 0) -> list[str]:
    """Texts of some 150 characters, a third of them made from earlier ones by changing one to six words."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts: list[str] = []
    for k in range(count):
        words = draw.choices(vocabulary, k=25)
        if k > 10 and draw.random() < 0.35:
            words = draw.choice(texts).split()
            for _ in range(draw.randint(1, 6)):
                words[draw.randrange(len(words))] = draw.choice(vocabulary)
        texts.append(" ".join(words))
    return texts


def test_the_pairs_found_are_those_of_brute_force_but_for_the_error_of_the_estimate():
    texts, threshold = drafts(300), 0.6
    similar = similarities(texts)
    ids = pl.Series(range(len(texts)))
    found = together(near.clusters(ids, near.signatures(texts), threshold))
    error = 3 * (threshold * (1 - threshold) / near.PLACES) ** 0.5  # three standard deviations of the estimate
    sure = connected(len(texts), [pair for pair, j in similar.items() if j >= threshold + error])
    at_most = connected(len(texts), [pair for pair, j in similar.items() if j >= threshold - error])
    assert len(together(sure)) > 30
    assert together(sure) <= found <= together(at_most)


def test_estimates_are_unbiased():
    texts = drafts(300, seed=1)
    made = near.signatures(texts)
    similar = {pair: j for pair, j in similarities(texts).items() if j > 0.2}
    errors = np.array([(made[i] == made[j]).mean() - similarity for (i, j), similarity in similar.items()])
    deviation = np.array([(s * (1 - s) / near.PLACES) ** 0.5 for s in similar.values()])
    assert len(similar) > 80
    assert abs((errors / deviation).mean()) < 0.3
    assert (errors / deviation).std() < 1.3


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=40),
    st.sampled_from([0.5, 0.7, 0.9, 1.0]),
    st.randoms(use_true_random=False),
)
def test_clusters_connect_all_pairs_whose_signatures_agree_and_ignore_the_order(texts, threshold, draw):
    ids = pl.Series([f"{k:03}" for k in draw.sample(range(1000), len(texts))])
    made = near.signatures(texts)
    found = near.clusters(ids, made, threshold)
    order = draw.sample(range(len(texts)), len(texts))
    again = near.clusters(ids.gather(order), near.signatures([texts[k] for k in order]), threshold)
    assert found.gather(order).to_list() == again.to_list()
    for i, j in together(found):
        assert found[i] == found[j] <= min(ids[i], ids[j])
    sets = [shingles(text) for text in texts]
    for i, j in combinations(range(len(texts)), 2):
        if sets[i] == sets[j]:
            assert found[i] == found[j]
        assert np.array_equal(made[i], made[j]) == (sets[i] == sets[j])


def all_pairs(signatures, threshold):
    """Clusters by comparing every two signatures."""
    agree = (signatures[:, None] == signatures[None]).mean(axis=2) >= threshold
    return connected(len(signatures), zip(*np.nonzero(np.triu(agree, 1)), strict=True))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_large_buckets_give_the_clusters_of_all_pairs(threshold, seed):
    # Many variants of one template fall into few large buckets, near ones and others.
    draw = random.Random(seed)
    template = "Write a short poem about the following subject and make sure that every line of it rhymes: "
    texts = [template + " ".join(draw.choices(WORDS, k=draw.randint(1, 30))) for _ in range(150)] * 2
    made = near.signatures(texts)
    ids = pl.Series(range(len(texts)))
    exact, found = all_pairs(made, threshold), near.clusters(ids, made, threshold).to_list()
    assert together(found) <= together(exact)
    # Banding misses at most one in a hundred of the pairs at the threshold, fewer above it.
    assert len(together(found)) >= 0.97 * len(together(exact))


def test_chinese_and_thai_texts_are_compared_by_characters():
    texts = [
        "请用简单的语言向一个五岁的孩子解释为什么天空在白天是蓝色的,在傍晚是红色的,并举出三个生活中的例子。",
        "请用简单的语言向一个六岁的孩子解释为什么天空在白天是蓝色的,在傍晚是红色的,并举出三个生活中的例子。",
        "写一首关于大海的七言绝句,描写清晨渔民出海时的情景,语言要优美,意境要开阔,并附上白话文翻译。",
    ]
    ids = pl.Series(["a", "b", "c"])
    for unit in ("char", "word"):
        assert near.prompt_clusters(ids, texts, 0.7, unit=unit).to_list() == ["a", "a", "c"]


def test_texts_without_words_or_characters_are_near_only_to_their_like():
    texts = ["", "  ", "!!!", "???", "a"]
    found = near.clusters(pl.Series(range(5)), near.signatures(texts), 0.5)
    assert found.to_list() == [0, 0, 2, 3, 4]


def test_a_prompt_alone_keeps_its_own_id_and_a_cluster_has_the_smallest():
    ids = pl.Series("split_key", ["9", "7", "8"])
    texts = [
        "why does light bend in water, and why not in air?",
        "name three rivers",
        "Why does light bend in water,  and why not in air?",
    ]
    assert near.prompt_clusters(ids, texts, 0.9).to_list() == ["8", "7", "8"]


def test_signatures_are_the_same_alone_and_in_any_number_of_threads():
    program = (
        "from rlhf_data.clean import near; import xxhash; from tests.clean.test_near import drafts;"
        "print(xxhash.xxh3_64_hexdigest(near.signatures(drafts(300)).tobytes()))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(digests) == 1
    texts = drafts(20)
    assert np.array_equal(near.signatures(texts), np.concatenate([near.signatures([text]) for text in texts]))


def test_bands_hold_the_recall_that_is_asked_for():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        count, width = near.bands(threshold)
        assert count * width <= near.PLACES
        assert 1 - (1 - threshold**width) ** count >= near.RECALL


def test_the_method_is_named_by_all_that_changes_signatures():
    names = {near.method(), near.method(unit="word"), near.method(ngram=4), near.method(places=64)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": pl.Series(["a"])}, "1 ids but 2 signatures"),
        ({"threshold": 0.0}, "near is 0; it must be above 0"),
        ({"threshold": 1.5}, "near is 1.5"),
    ],
)
def test_what_cannot_be_clustered_is_an_error_that_says_why(change, message):
    given = {"ids": pl.Series(["a", "b"]), "signatures": near.signatures(["a", "b"]), "threshold": 0.9}
    with pytest.raises(ValueError, match=message):
        near.clusters(**{**given, **change})


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="no unit 'byte'; known units: char, word"):
        near.signatures(["a"], unit="byte")


def test_no_texts_have_no_clusters():
    assert near.clusters(pl.Series([], dtype=pl.String), near.signatures([]), 0.9).to_list() == []
