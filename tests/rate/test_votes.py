"""Votes on the same two answers become one preference, whichever was shown first."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data.rate import votes
from tests import rows

few = settings(deadline=None, max_examples=50)
A, B, C = "a", "b", "c"
# Quarters: their sums and 1 − v are exact in floats.
vote = st.tuples(
    st.sampled_from([(A, B), (B, A), (A, C), (C, B)]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.sampled_from(["s", "t"]),
)


def judged(ballots) -> pl.DataFrame:
    return rows.judged(
        *(
            {"completion": one, "other": other, "kind": "comparison", "value": value, "source": source}
            for (one, other), value, source in ballots
        )
    )


def preferences(*values: float, method: str = "mean") -> tuple[str, float]:
    """Who is chosen, and how surely, where A met B with these values."""
    (row,) = votes.compare(judged([((A, B), value, "s") for value in values]), method=method).to_dicts()
    return rows.ANSWERS[row["chosen_row"]], row["preference"]


@pytest.mark.parametrize("method", votes.METHODS)
@few
@given(ballots=st.lists(vote, max_size=12))
def test_which_answer_was_shown_first_does_not_matter(method, ballots):
    swapped = [((pair[1], pair[0]), 1.0 - value, source) for pair, value, source in ballots]
    assert_frame_equal(votes.compare(judged(ballots), method=method), votes.compare(judged(swapped), method=method))


@pytest.mark.parametrize("method", votes.METHODS)
@few
@given(ballots=st.lists(vote, max_size=12))
def test_a_preference_is_between_one_half_and_one_and_every_vote_counts_once(method, ballots):
    compared = votes.compare(judged(ballots), method=method)
    assert compared["preference"].is_between(0.5, 1.0).all()
    assert compared["votes"].sum() == len(ballots)
    assert sorted(compared["judgment_rows"].explode().drop_nulls()) == list(range(len(ballots)))
    assert not compared.select("chosen_row", "rejected_row", "source").is_duplicated().any()
    assert (compared["chosen_row"] != compared["rejected_row"]).all()


@few
@given(ballots=st.lists(vote, max_size=12), data=st.data())
def test_the_order_of_votes_does_not_matter(ballots, data):
    votes_cast = judged(ballots)
    shuffled = votes_cast[data.draw(st.permutations(range(len(ballots))))] if ballots else votes_cast
    assert_frame_equal(votes.compare(shuffled), votes.compare(votes_cast))


@pytest.mark.parametrize(
    ("values", "mean", "majority"),
    [
        ((1, 1, 1, 0), (A, 0.75), (A, 1.0)),
        ((0, 0, 1), (B, 2 / 3), (B, 1.0)),
        ((1, 0), (A, 0.5), (A, 0.5)),
        ((1, 0.5, 0.5), (A, 2 / 3), (A, 0.5)),  # more ties than votes for either
        ((1, 0.5), (A, 0.75), (A, 0.5)),  # as many ties as votes
        ((0.5, 0.5), (A, 0.5), (A, 0.5)),
        ((0.9, 0.2), (A, 0.55), (A, 0.5)),
        ((1, 1, 0, 0.5), (A, 0.625), (A, 1.0)),
    ],
)
def test_the_mean_keeps_doubt_and_the_majority_does_not(values, mean, majority):
    for method, (chosen, preference) in (("mean", mean), ("majority", majority)):
        assert preferences(*values, method=method) == (chosen, pytest.approx(preference))


def test_sources_vote_apart():
    compared = votes.compare(judged([((A, B), 1.0, "s"), ((A, B), 0.0, "t")]))
    assert compared["source"].to_list() == ["s", "t"] and rows.named(compared["chosen_row"]) == [A, B]
