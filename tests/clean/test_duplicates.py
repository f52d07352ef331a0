"""Of texts that are the same but for their form, one is kept: the best rated, whatever the order of rows."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.clean import duplicates

ROWS = st.lists(
    st.tuples(st.sampled_from("xyz"), st.integers(0, 99), st.none() | st.sampled_from([0.0, 0.5, 1.0])),
    unique_by=lambda row: row[1],
    max_size=12,
)


def standing_for(rows) -> dict[int, int]:
    """Which id each id is kept as."""
    groups, ids, ratings = ([row[k] for row in rows] for k in range(3))
    ids = pl.Series(ids, dtype=pl.UInt32)
    kept = duplicates.representatives(pl.Series(groups, dtype=pl.String), ids, pl.Series(ratings, dtype=pl.Float64))
    return dict(zip(ids, ids.gather(kept), strict=True))


@given(ROWS, st.randoms(use_true_random=False))
def test_the_best_rated_of_a_group_is_kept_then_the_smallest_id_in_any_order(rows, draw):
    found = standing_for(rows)
    for group, name, _ in rows:
        best = min((row for row in rows if row[0] == group), key=lambda r: (r[2] is None, -(r[2] or 0.0), r[1]))
        assert found[name] == best[1]
    assert standing_for(draw.sample(rows, len(rows))) == found


def test_without_ratings_the_smallest_id_is_kept():
    kept = duplicates.representatives(pl.Series(["g", "g", "h"]), pl.Series(["b", "a", "c"]))
    assert kept.to_list() == [1, 1, 2]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Hello  World\n", "hello world", True),
        ("ﬁne", "FINE", True),
        ("Straße", "STRASSE", True),
        ("e\u0301", "é", True),
        ("１２", "12", True),
        ("hello world", "helloworld", False),
        ("it's", "its", False),
        ("", " ", True),
    ],
)
def test_texts_are_the_same_but_for_case_white_space_and_form(first, second, same):
    keys = duplicates.text_keys([first, second])
    assert (keys[0] == keys[1]) is same


def test_a_pair_is_the_same_in_both_orders_and_under_its_prompt_only():
    prompt, other = pl.Series(["p" * 32]), pl.Series(["q" * 32])
    a, b = duplicates.text_keys(["a"]), duplicates.text_keys(["b"])
    key = duplicates.pair_keys(prompt, a, b).to_list()
    assert key == duplicates.pair_keys(prompt, b, a).to_list()
    assert key != duplicates.pair_keys(other, a, b).to_list()
    assert key != duplicates.pair_keys(prompt, a, a).to_list()


def test_joined_keys_differ_where_any_part_differs():
    a, b = duplicates.text_keys(["a", "a"]), duplicates.text_keys(["a", "b"])
    assert duplicates.joined_keys(a, b).n_unique() == 2
    assert duplicates.joined_keys(a, b).to_list() != duplicates.joined_keys(b, a).to_list()[::-1]


def judged(*rows) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"completion_row": pl.UInt32, "source": pl.String, "value": pl.Float64}, orient="row"
    ).with_columns(kind=pl.lit("rating"), aspect=pl.lit(None, dtype=pl.String))


def test_a_standing_is_the_share_of_the_sources_own_ratings_that_are_below():
    # Of four ratings of s, 10 is above three and equal to itself: 3.5 of 4. The scale of t does not matter.
    judgments = judged((1, "s", 10.0), (2, "s", 1.0), (3, "s", 5.0), (4, "s", 5.0), (5, "t", 100.0), (6, "t", 90.0))
    assert dict(duplicates.standings(judgments).iter_rows()) == {
        1: 3.5 / 4, 2: 0.5 / 4, 3: 2.0 / 4, 4: 2.0 / 4, 5: 1.5 / 2, 6: 0.5 / 2,
    }  # fmt: skip


def test_votes_of_several_are_averaged_and_comparisons_are_not_heard():
    judgments = judged((1, "s", 1.0), (1, "s", 3.0), (2, "s", 2.0))
    other = judged((9, "s", 1.0)).with_columns(kind=pl.lit("comparison"))
    found = dict(duplicates.standings(pl.concat([judgments, other])).iter_rows())
    assert found == {1: pytest.approx((0.5 / 3 + 2.5 / 3) / 2), 2: pytest.approx(1.5 / 3)}
