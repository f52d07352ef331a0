"""Ratings of several people on one scale, and several aspects as one rating."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.rate import ratings, scales

few = settings(deadline=None, max_examples=25)
SCHEMA = {
    "judgment_row": pl.UInt32,
    "prompt_row": pl.UInt32,
    "completion_row": pl.UInt32,
    "source": pl.Categorical,
    "annotator": pl.Categorical,
    "aspect": pl.Categorical,
    "kind": pl.Categorical,
    "value": pl.Float64,
}


def rated(*rows: dict) -> pl.DataFrame:
    usual = {"prompt_row": 0, "completion_row": 0, "source": "s", "annotator": "x", "aspect": None, "kind": "rating"}
    return pl.DataFrame([{"judgment_row": k, **usual, **row} for k, row in enumerate(rows)], schema=SCHEMA)


def scaled(values, method: str, **columns) -> list[float]:
    return scales.normalize(rated(*({"value": v, **columns} for v in values)), method)["scaled"].to_list()


def test_a_zscore_is_in_standard_deviations_from_the_persons_mean():
    # mean 3, population variance (4 + 0 + 4) / 3
    assert scaled([1.0, 3.0, 5.0], "zscore") == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])


def test_ranks_are_spread_over_nothing_to_one_and_ties_share_theirs():
    assert scaled([10.0, 30.0, 20.0, 20.0], "rank") == [0.125, 0.875, 0.5, 0.5]


@pytest.mark.parametrize("values", [[7.0], [0.1, 0.1, 0.1], [-3.0, -3.0]])
@pytest.mark.parametrize(("method", "middle"), [("zscore", 0.0), ("rank", 0.5)])
def test_one_rating_or_equal_ones_are_in_the_middle(values, method, middle):
    assert scaled(values, method) == [middle] * len(values)


def test_a_person_is_compared_with_themselves_and_a_source_with_all_its_people():
    rows = rated(*({"value": v, "annotator": who} for who, v in (("x", 1.0), ("x", 2.0), ("y", 8.0), ("y", 9.0))))
    assert scales.normalize(rows, "rank")["scaled"].to_list() == [0.25, 0.75, 0.25, 0.75]
    assert scales.normalize(rows, "rank", per="source")["scaled"].to_list() == [0.125, 0.375, 0.625, 0.875]


def test_aspects_sources_and_the_unknown_annotator_are_scales_of_their_own():
    rows = rated(
        {"value": 1.0, "aspect": "a"},
        {"value": 9.0, "aspect": "b"},
        {"value": 5.0, "aspect": "b", "source": "t"},
        {"value": 3.0, "aspect": "b", "annotator": None},
        {"value": 4.0, "aspect": "b", "annotator": None},
    )
    assert scales.normalize(rows, "rank")["scaled"].to_list() == [0.5, 0.5, 0.5, 0.25, 0.75]


def test_other_kinds_are_neither_scaled_nor_counted():
    rows = rated({"value": 1.0}, {"value": 3.0}, {"value": 100.0, "kind": "label"})
    assert scales.normalize(rows, "zscore")["scaled"].to_list() == [-1.0, 1.0, None]


@pytest.mark.parametrize("method", scales.METHODS)
@few
@given(values=st.lists(st.tuples(st.sampled_from("xy"), st.floats(-9, 9)), min_size=1, max_size=10), data=st.data())
def test_the_order_of_ratings_changes_no_digit(method, values, data):
    rows = rated(*({"value": v, "annotator": who} for who, v in values))
    shuffled = rows[data.draw(st.permutations(range(len(values))))]
    ours, theirs = (scales.normalize(r, method).sort("judgment_row")["scaled"].to_list() for r in (rows, shuffled))
    assert ours == theirs


@few
@given(
    values=st.lists(st.integers(0, 9).map(float), min_size=2, max_size=10), a=st.integers(1, 5), b=st.integers(-5, 5)
)
def test_another_linear_scale_gives_the_same(values, a, b):
    for method in scales.METHODS:
        assert scaled([a * v + b for v in values], method) == pytest.approx(scaled(values, method), abs=1e-9)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="no way to normalize named 'log'; known: zscore, rank"):
        scales.normalize(rated(), "log")
    with pytest.raises(ValueError, match="per annotator or source, not per 'prompt'"):
        scales.normalize(rated(), "rank", per="prompt")


def test_the_reward_of_normalized_ratings_is_the_mean_of_the_scaled_and_the_rating_stays():
    given = (("x", 0, 1.0), ("x", 1, 5.0), ("y", 0, 3.0), ("y", 1, 4.0))
    rows = rated(*({"value": v, "annotator": who, "completion_row": c} for who, c, v in given))
    found = ratings.rate_answers(scales.normalize(rows, "zscore"), scale=(1, 5))
    assert found["rating"].to_list() == [2.0, 4.5]
    assert found["reward"].to_list() == [-1.0, 1.0]  # each person gave two ratings, one each side of their mean
    assert found["reward_std"].to_list() == [0.0, 0.0]


def test_a_label_beside_normalized_ratings_keeps_its_reward():
    rows = rated({"value": 1.0}, {"value": 1.0, "kind": "label", "completion_row": 1})
    assert ratings.rate_answers(scales.normalize(rows, "zscore"))["reward"].to_list() == [0.0, 1.0]


ASPECTS = {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("refuse", {0: 5.0}), ("renormalize", {0: 5.0, 1: 8.0}), (4.0, {0: 5.0, 1: 7.0}), (0.0, {0: 5.0, 1: 6.0})],
)
def test_a_missing_aspect_is_refused_or_left_out_of_the_mean_or_a_number(missing, expected):
    rows = rated(
        {"value": 4.0, "aspect": "a"},
        {"value": 8.0, "aspect": "b"},  # (3 · 4 + 1 · 8) / 4 = 5
        {"value": 8.0, "aspect": "a", "completion_row": 1},  # b is missing
    )
    whole, refused = ratings.combine_aspects(rows, ASPECTS, missing=missing)
    assert dict(whole.sort("completion_row").select("completion_row", "value").iter_rows()) == expected
    assert refused["judgment_row"].to_list() == ([2] if missing == "refuse" else [])


def test_aspects_are_normalized_before_they_are_combined():
    given = ((0, "a", 1.0), (1, "a", 5.0), (0, "b", 90.0), (1, "b", 80.0))
    rows = rated(*({"value": v, "aspect": a, "completion_row": c} for c, a, v in given))
    whole, _ = ratings.combine_aspects(scales.normalize(rows, "zscore"), ASPECTS)
    # a: −1 and 1, b: 1 and −1; (3 · −1 + 1) / 4
    assert whole.sort("completion_row")["scaled"].to_list() == [-0.5, 0.5]
