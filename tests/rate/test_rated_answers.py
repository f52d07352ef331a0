"""Ratings, labels and ranks of an answer become its rating, reward and label."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data import tables
from rlhf_data.rate.rate import rate
from rlhf_data.rate.ratings import rate_answers
from tests.rows import identity, index, judged, named

few = settings(deadline=None, max_examples=50)


def judgment(answer: str, value: float | None, kind: str = "rating", **more) -> dict:
    return {"completion": answer, "kind": kind, "value": value} | more


def answers(*rows: dict, scale=None) -> dict[str, dict]:
    found = rate_answers(judged(*rows), scale=scale)
    return dict(zip(named(found["completion_row"]), found.to_dicts(), strict=True))


@pytest.fixture
def run(tmp_path):
    """The step on judgments; gives rated, compared, quarantine and its count."""

    def run(*rows: dict, **parameters):
        text, out = index(tmp_path / "in", judgments=rows), tmp_path / "out"
        out.mkdir()
        (count,) = rate({"text": text}, out, **parameters)
        found = [tables.read(out / f"{name}.parquet", name) for name in ("rated", "compared", "quarantine")]
        return (*found, count)

    return run


def test_the_ends_of_the_scale_are_rewards_of_nothing_and_one():
    found = answers(judgment("a", 1), judgment("b", 3), judgment("c", 5), scale=(1, 5))
    assert {name: (row["rating"], row["reward"]) for name, row in found.items()} == {
        "a": (1, 0.0),
        "b": (3, 0.5),
        "c": (5, 1.0),
    }


def test_without_a_scale_the_reward_is_the_rating():
    assert answers(judgment("a", -7.5))["a"]["reward"] == -7.5


def test_annotators_are_averaged_and_their_spread_is_in_units_of_the_reward():
    row = answers(judgment("a", 1), judgment("a", 5), scale=(1, 5))["a"]
    # mean 3 → 0.5; the rewards are 0 and 1, whose standard deviation (n − 1) is √½
    assert (row["rating"], row["reward"], row["votes"]) == (3, 0.5, 2)
    assert row["reward_std"] == pytest.approx(0.5**0.5)
    assert answers(judgment("a", 1))["a"]["reward_std"] is None


@pytest.mark.parametrize(
    ("labels", "label", "reward"),
    [((1,), True, 1.0), ((0,), False, -1.0), ((1, 0), None, 0.0), ((1, 1, 0), True, 1 / 3), ((0, 0, 1), False, -1 / 3)],
)
def test_a_label_is_the_majoritys_and_of_a_tie_there_is_none(labels, label, reward):
    row = answers(*(judgment("a", value, "label") for value in labels))["a"]
    assert row["label"] is label
    assert row["reward"] == pytest.approx(reward)


def test_of_ranks_the_smaller_is_the_better():
    found = answers(judgment("a", 1, "rank"), judgment("b", 2, "rank"), judgment("c", 2, "rank"))
    assert found["a"]["reward"] > found["b"]["reward"] == found["c"]["reward"]


def test_a_demonstration_has_neither_rating_nor_reward_nor_label():
    row = answers(judgment("a", None, "demonstration"))["a"]
    assert (row["rating"], row["reward"], row["label"], row["votes"]) == (None, None, None, 1)


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.lists(st.integers(0, 5), max_size=2))
def test_a_reward_is_the_exact_quotient_whatever_is_said_of_other_answers(values, again):
    rows = [judgment(answer, float(value)) for answer, value in zip("abcd", values, strict=False)]
    found = answers(*rows, *(judgment("e", float(value)) for value in again), scale=(0, 5))
    assert [found[answer]["reward"] for answer, _ in zip("abcd", values, strict=False)] == [v / 5 for v in values]


@few
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=12), st.data())
def test_the_order_of_judgments_changes_no_digit(ratings, data):
    rows = judged(*(judgment(answer, value) for answer, value in ratings))
    shuffled = rows[data.draw(st.permutations(range(rows.height)))]
    assert_frame_equal(rate_answers(shuffled), rate_answers(rows), check_exact=True)


def test_a_rating_off_the_scale_is_refused_and_the_rest_goes_on(run):
    rated, _, quarantine, count = run(judgment("a", 5), judgment("b", 5.1), judgment("c", 0), scale=(1, 5))
    assert named(rated["completion_row"]) == ["a"]
    assert quarantine["code"].to_list() == ["rating.out_of_scale"] * 2
    assert quarantine["detail"][0] == "the declared scale is 1 to 5"
    assert quarantine["raw_ref"].to_list() == [["f#1"], ["f#2"]]
    assert [json.loads(row)["completion_id"] for row in quarantine["row"]] == [identity("b"), identity("c")]
    assert (count.rows_in, count.out, count.quarantined) == (3, 1, {"rating.out_of_scale": 2})


def test_the_scale_is_the_ratings_and_not_the_labels(run):
    rated, _, quarantine, _ = run(judgment("a", 0, "label"), scale=(1, 5))
    assert (rated.height, quarantine.height) == (1, 0)


def test_aspects_are_a_weighted_mean_and_an_answer_that_lacks_one_is_refused(run):
    rated, _, quarantine, count = run(
        judgment("a", 4, aspect="tone", record=0),
        judgment("a", 1, aspect="truth", record=0),
        judgment("a", 3, aspect="length", record=0),
        judgment("b", 5, aspect="tone", record=1),
        by="aspects",
        aspects={"tone": 1.0, "truth": 2.0},
    )
    assert (named(rated["completion_row"]), rated["rating"].to_list()) == (["a"], [(4 * 1 + 1 * 2) / 3])
    assert rated["judgment_rows"].to_list() == [[0, 1]]
    assert quarantine.select("code", "raw_ref").rows() == [("aspect.missing", ["f#1"])]
    assert (count.rows_in, count.out, count.merged) == (4, 1, {"into one row per answer or pair": 1})
    assert count.filtered == {"aspect not named in rate.aspects": 1}


def test_several_aspects_and_no_word_on_how_they_combine_is_an_error(run):
    with pytest.raises(ValueError, match=r"the sources rate 2 aspects \(tone, truth\): say how they combine"):
        run(judgment("a", 4, aspect="tone"), judgment("a", 1, aspect="truth"))


def test_an_aspect_that_nobody_rates_is_an_error(run):
    with pytest.raises(ValueError, match=r"no aspect named tune; the sources rate tone"):
        run(judgment("a", 4, aspect="tone"), by="aspects", aspects={"tune": 1.0})


def test_judgments_of_another_kind_are_left_out_and_counted(run):
    rated, compared, _, count = run(
        judgment("a", 4), judgment("b", 1, "label"), judgment("a", 1, "comparison", other="b"), by="rating"
    )
    assert (rated.height, compared.height) == (1, 0)
    assert count.filtered == {"comparison, and rate is by rating": 1, "label, and rate is by rating": 1}


def test_without_by_every_kind_is_heard_in_its_own_way(run):
    rated, compared, _, count = run(judgment("a", 4), judgment("a", 1, "comparison", other="b"))
    assert (rated.height, compared.height, count.filtered) == (1, 1, {})


def test_no_judgments_give_empty_tables(run):
    rated, compared, quarantine, count = run(judgment("a", 9), scale=(1, 5))
    assert (rated.height, compared.height, quarantine.height, count.out) == (0, 0, 1, 0)


def test_where_nothing_was_judged_there_is_nothing_to_rate(run):
    rated, compared, quarantine, count = run()
    assert (rated.height, compared.height, quarantine.height, count.rows_in) == (0, 0, 0, 0)
