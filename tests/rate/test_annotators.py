"""Dawid–Skene finds the truth and the reliable; agreement is Krippendorff's."""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data.rate.annotators import FIRST, SECOND, TIE, compare, dawid_skene, rating_agreement, vote_agreement

RAW = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))
few = settings(deadline=None, max_examples=25)
SCHEMA = {
    "judgment_row": pl.UInt32,
    "prompt_row": pl.UInt32,
    "completion_row": pl.UInt32,
    "other_row": pl.UInt32,
    "source": pl.String,
    "annotator": pl.String,
    "kind": pl.String,
    "aspect": pl.String,
    "value": pl.Float64,
}


def judged(*rows: tuple, source: str = "s", kind: str = "comparison") -> pl.DataFrame:
    """(annotator, answer, other, value) of each."""
    given = [(k, 0, a, b, source, who, kind, None, v) for k, (who, a, b, v) in enumerate(rows)]
    return pl.DataFrame(given, schema=SCHEMA, orient="row")


def simulated(rng: np.random.Generator, right, tie_share: float = 0.0, pairs: int = 400, each: int = 5):
    """Votes of annotators who are right with these probabilities; ties are seen as such 7 times in 10."""
    truth = np.where(rng.random(pairs) < tie_share, TIE, rng.choice([SECOND, FIRST], pairs))
    votes = []
    for u in range(pairs):
        for a in rng.permutation(len(right))[:each]:
            if truth[u] == TIE:
                vote = TIE if rng.random() < 0.7 else rng.choice([SECOND, FIRST])
            else:
                vote = truth[u] if rng.random() < right[a] else 2 - truth[u]
            votes.append((u, a, vote))
    return truth, np.array(votes)


def majority(votes: np.ndarray, pairs: int) -> np.ndarray:
    """SECOND or FIRST by points; TIE where they are level."""
    points = np.bincount(votes[:, 0], votes[:, 2] - 1.0, minlength=pairs)
    return np.sign(points).astype(int) + 1


def test_spammers_and_an_adversary_are_found_and_the_truth_in_spite_of_them():
    rng = np.random.default_rng(3)
    right = np.array([0.9] * 5 + [0.5] * 4 + [0.1])  # careful, spammers, an adversary
    truth, votes = simulated(rng, right)
    found = dawid_skene(*votes.T, 400, 10)
    np.testing.assert_allclose(found.on_side[:, 0], right, atol=0.1)
    said = np.where(found.posterior[:, FIRST] > 0.5, FIRST, SECOND)
    assert (said == truth).mean() > 0.95 > 0.90 > (majority(votes, 400) == truth).mean()


def test_certainties_are_as_often_right_as_they_say():
    rng = np.random.default_rng(4)
    truth, votes = simulated(rng, np.linspace(0.55, 0.9, 12), pairs=3000, each=3)
    found = dawid_skene(*votes.T, 3000, 12)
    sure = found.posterior.max(axis=1)
    assert abs(sure.mean() - (found.posterior.argmax(axis=1) == truth).mean()) < 0.02


def test_ties_are_found_where_annotators_tell_them():
    rng = np.random.default_rng(5)
    truth, votes = simulated(rng, np.full(8, 0.85), tie_share=0.3, pairs=600)
    found = dawid_skene(*votes.T, 600, 8)
    assert abs(found.tie - (truth == TIE).mean()) < 0.03
    assert (found.posterior.argmax(axis=1) == truth).mean() > 0.95
    np.testing.assert_allclose(found.on_tie[:, 0], 0.7, atol=0.1)


def test_where_nobody_votes_for_a_tie_there_is_none():
    found = dawid_skene([0, 0, 1], [0, 1, 0], [FIRST, SECOND, FIRST], 2, 2)
    assert found.tie == 0.0 and (found.posterior[:, TIE] == 0.0).all()


def test_an_annotator_of_one_vote_is_taken_for_nearly_average():
    rng = np.random.default_rng(6)
    _, votes = simulated(rng, np.full(6, 0.85))
    wrong = 2 - votes[0, 2]
    found = dawid_skene(*np.vstack([votes, [votes[0, 0], 6, wrong]]).T, 400, 7)
    average = found.on_side[:6, 0].mean()
    # 4 votes' worth of the average and 1 of its own, which is wrong: about 4/5 of the average
    assert found.on_side[6, 0] == pytest.approx(average * 4 / 5, abs=0.03)


def test_one_vote_on_one_pair_leans_its_way_and_no_more():
    found = dawid_skene([0], [0], [FIRST], 1, 1)
    assert 0.5 < found.posterior[0, FIRST] < 1.0
    assert dawid_skene([], [], [], 0, 0).posterior.shape == (0, 3)
    np.testing.assert_allclose(dawid_skene([], [], [], 2, 1).posterior, [[0.5, 0.0, 0.5]] * 2)


def test_everyone_wrong_together_is_taken_for_right():
    """Started from the majority, votes are for right more often than for wrong."""
    rng = np.random.default_rng(8)
    _, votes = simulated(rng, np.full(6, 0.2))
    found = dawid_skene(*votes.T, 400, 6)
    assert (found.on_side[:, 0] > found.on_side[:, 2]).all()


vote = st.tuples(
    st.sampled_from(["x", "y", "z", None]),
    st.permutations(range(3)).map(lambda p: (p[0], p[1])),
    st.sampled_from([0.0, 0.5, 1.0]),
)


@few
@given(votes=st.lists(vote, min_size=1, max_size=12), data=st.data())
def test_neither_the_order_of_votes_nor_which_answer_is_first_changes_a_digit(votes, data):
    rows = judged(*((who, a, b, v) for who, (a, b), v in votes))
    flip = pl.Series(data.draw(st.lists(st.booleans(), min_size=len(votes), max_size=len(votes))))
    turned = rows.with_columns(
        completion_row=pl.when(flip).then("other_row").otherwise("completion_row"),
        other_row=pl.when(flip).then("completion_row").otherwise("other_row"),
        value=pl.when(flip).then(1.0 - pl.col("value")).otherwise("value"),
    )[data.draw(st.permutations(range(len(votes))))]
    for ours, theirs in zip(compare(rows), compare(turned), strict=True):
        assert_frame_equal(ours, theirs, check_exact=True)
    assert vote_agreement(rows) == vote_agreement(turned)


@few
@given(votes=st.lists(vote, min_size=1, max_size=12))
def test_a_preference_is_between_one_half_and_one_and_every_vote_counts_once(votes):
    rows = judged(*((who, a, b, v) for who, (a, b), v in votes))
    preferences, people = compare(rows)
    assert preferences["preference"].is_between(0.5, 1.0).all()
    assert sorted(preferences["judgment_rows"].explode()) == list(range(len(votes)))
    assert preferences["votes"].sum() == people["votes"].sum() == len(votes)
    np.testing.assert_allclose(people.select(pl.sum_horizontal("right", "tie", "wrong")).to_series(), 1.0)


def test_sources_are_weighed_apart():
    careful = [("x", 0, 1, 1.0), ("y", 0, 1, 1.0), ("x", 2, 3, 1.0), ("y", 2, 3, 1.0)]
    both = pl.concat([judged(*careful), judged(("x", 0, 1, 0.0), source="t")])
    preferences, people = compare(both)
    alone, _ = compare(judged(*careful))
    assert_frame_equal(preferences.filter(pl.col("source") == "s"), alone)
    assert people.select("source", "annotator").rows() == [("s", "x"), ("s", "y"), ("t", "x")]


def test_no_votes_give_empty_tables():
    preferences, people = compare(judged())
    assert preferences.height == people.height == 0
    assert preferences.schema == compare(judged(("x", 0, 1, 1.0)))[0].schema


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match="smoothing is 0"):
        dawid_skene([0], [0], [FIRST], 1, 1, smoothing=0.0)
    with pytest.raises(ValueError, match="votes must be 0, 1 or 2"):
        dawid_skene([0], [0], [3], 1, 1)


def alpha(units, distance) -> float:
    """Krippendorff's definition, pair by pair."""
    several = [u for u in units if len(u) > 1]
    n = sum(map(len, several))
    observed = sum(distance(v, w) / (len(u) - 1) for u in several for v, w in itertools.permutations(u, 2)) / n
    pooled = list(itertools.chain(*several))
    expected = sum(distance(v, w) for v, w in itertools.permutations(pooled, 2)) / (n * (n - 1))
    return 1.0 - observed / expected


@few
@given(st.lists(st.lists(st.sampled_from([1.0, 2.0, 4.0, 7.5]), min_size=1, max_size=4), min_size=2, max_size=5))
def test_agreement_of_ratings_is_krippendorffs_alpha_for_intervals(units):
    rows = [(None, u, None, v) for u, values in enumerate(units) for v in values]
    found = rating_agreement(judged(*rows, kind="rating"))
    several = [u for u in units if len(u) > 1]
    assert (found.units, found.votes) == (len(several), sum(map(len, several)))
    if len({v for u in several for v in u}) < 2:
        assert found.alpha is None
    else:
        assert found.alpha == pytest.approx(alpha(units, lambda v, w: (v - w) ** 2))


@few
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_agreement_of_votes_is_krippendorffs_alpha_with_each_pair_in_both_orders(units):
    rows = [(None, 2 * u, 2 * u + 1, v) for u, values in enumerate(units) for v in values]
    found = vote_agreement(judged(*rows))
    both = [*units, *([1.0 - v for v in values] for values in units)]
    if len({v for u in both if len(u) > 1 for v in u}) < 2:
        assert found.alpha is None
    else:
        assert found.alpha == pytest.approx(alpha(both, lambda v, w: float(v != w)))


def test_percent_counts_pairs_of_equal_votes():
    # three votes, of which two agree: 1 pair in 3; two votes that agree: 1 in 1. By votes: (3 · 1/3 + 2 · 1) / 5
    found = vote_agreement(judged(*[("x", 0, 1, v) for v in (1.0, 1.0, 0.0)], *[("x", 2, 3, 0.5)] * 2))
    assert found.percent == pytest.approx(3 / 5)
    rated = rating_agreement(
        judged(*[("x", 0, None, v) for v in (1.0, 1.0, 3.0)], *[("x", 1, None, 2.0)] * 2, kind="rating")
    )
    assert rated.percent == pytest.approx(3 / 5)


def test_what_was_judged_once_tells_nothing_of_agreement():
    assert vote_agreement(judged(("x", 0, 1, 1.0))) == (0, 0, None, None)
    assert rating_agreement(judged(("x", 0, None, 1.0), kind="rating")) == (0, 0, None, None)


@pytest.mark.skipif(not RAW.is_dir(), reason=f"no raw data at {RAW}; set RLHF_DATA_RAW")
def test_the_crowd_of_llmfao_is_weighed_within_two_seconds():
    votes = pl.read_csv(RAW / "llmfao" / "crowd-comparisons.csv", infer_schema=False)
    battle, worker = (votes[name].cast(pl.Categorical).to_physical().to_numpy() for name in ("id", "worker"))
    vote = votes["winner"].replace_strict({"left": FIRST, "right": SECOND, "tie": TIE}).to_numpy()
    started = time.perf_counter()
    found = dawid_skene(battle, worker, vote, 2139, 124)
    assert time.perf_counter() - started < 2.0
    plurality = np.stack([np.bincount(battle, vote == v, minlength=2139) for v in (SECOND, TIE, FIRST)], axis=1)
    clear = np.sort(plurality, axis=1)[:, -1] > np.sort(plurality, axis=1)[:, -2]
    assert clear.sum() == 2139 - 308  # 308 battles have no plurality
    agrees = found.posterior.argmax(axis=1) == plurality.argmax(axis=1)
    assert 0.75 < agrees[clear].mean() < 1.0  # the crowd is followed, but not always
