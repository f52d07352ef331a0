"""The step that makes the unpaired table: pairs become answers at the level of the answer, labels from rewards."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import tables
from rlhf_data.shape.pairing import propose, rows_of
from rlhf_data.shape.unpaired import to_unpaired, unpair
from tests.rows import PROMPTS, compared, index, named, rated

few = settings(deadline=None, max_examples=50)


def pairs(*rows: tuple[str, str, float, int]) -> pl.DataFrame:
    return compared(
        *(
            {"chosen": chosen, "rejected": rejected, "preference": preference, "votes": votes}
            for chosen, rejected, preference, votes in rows
        )
    )


def rewards(frame: pl.DataFrame) -> dict[str, tuple]:
    found = frame.select("reward", "label", "votes").rows()
    return dict(zip(named(frame["completion_row"]), found, strict=True))


def test_an_answer_that_won_three_and_lost_one_is_one_row():
    found = rewards(unpair(pairs(("a", "b", 0.75, 4))))
    assert found == {"a": (0.5, True, 4), "b": (-0.5, False, 4)}


def test_an_answer_is_one_row_however_many_pairs_it_is_in():
    # Unpaired pair by pair, b would be good once and bad once.
    found = rewards(unpair(pairs(("a", "b", 1.0, 1), ("b", "c", 1.0, 1), ("a", "c", 1.0, 1))))
    assert found == {"a": (1.0, True, 2), "b": (0.0, None, 2), "c": (-1.0, False, 2)}


@pytest.mark.parametrize("won", range(11, 23))
def test_who_wins_as_often_as_they_lose_is_neither_good_nor_bad_in_floats_too(won):
    # 15 / 22 · 22 is 14.999999999999998
    found = rewards(unpair(pairs(("a", "b", won / 22, 22), ("c", "a", won / 22, 22))))
    assert found["a"] == (0.0, None, 44)


@few
@given(groups=st.lists(st.lists(st.integers(0, 4).map(float), min_size=2, max_size=5), min_size=1, max_size=4))
def test_pairing_then_unpairing_loses_no_answer(groups):
    places = [(p, reward) for p, group in enumerate(groups) for reward in group]
    answers = pl.DataFrame(
        {
            "prompt_row": pl.Series([p for p, _ in places], dtype=pl.UInt32),
            "completion_row": pl.Series(range(len(places)), dtype=pl.UInt32),
            "source": pl.Series(["s"] * len(places), dtype=pl.Categorical),
            "reward": [reward for _, reward in places],
            "votes": [1] * len(places),
            "bits": pl.Series(range(len(places)), dtype=pl.UInt64),
        }
    )
    found = rows_of(answers, pl.concat(propose(answers, "all", 0)))
    behind = pl.Series([[int(a), int(b)] for a, b in found.select("chosen_row", "rejected_row").iter_rows()])
    back = unpair(found.with_columns(preference=pl.lit(1.0), judgment_rows=behind.cast(pl.List(pl.UInt32))))
    assert set(back["completion_row"]) == set(answers["completion_row"])
    assert set(back["judgment_rows"].explode()) == set(answers["completion_row"])


@few
@given(st.lists(st.tuples(st.sampled_from(["ab", "ac", "bc"]), st.sampled_from([0.5, 0.75, 1.0]), st.integers(1, 9))))
def test_what_one_answer_wins_another_loses(ballots):
    rows = [(pair[0], pair[1], preference, votes) for pair, preference, votes in ballots]
    found = unpair(pairs(*rows))
    assert (found["reward"] * found["votes"]).sum() == pytest.approx(0.0, abs=1e-9)
    assert found["reward"].is_between(-1, 1).all()
    assert found["votes"].sum() == 2 * sum(votes for *_, votes in ballots)


@pytest.fixture
def shape(tmp_path):
    """The step on (answer, reward, label) and pairs; gives its rows by answer, and its count."""

    def shape(answers=(), given_pairs=(), **parameters):
        for name in ("rate", "split", "out"):
            (tmp_path / name).mkdir(exist_ok=True)
        known = rated(*({"completion": name, "reward": reward, "label": label} for name, reward, label in answers))
        tables.write(known, tmp_path / "rate" / "rated.parquet", "rated")
        tables.write(pairs(*given_pairs), tmp_path / "rate" / "compared.parquet", "compared")
        splits = pl.DataFrame({"prompt_row": range(len(PROMPTS)), "split": ["train"] * len(PROMPTS)})
        tables.write(splits, tmp_path / "split" / "splits.parquet", "splits")
        text = index(tmp_path / "text", category="c")
        inputs = {"rate": tmp_path / "rate", "split": tmp_path / "split", "text": text}
        (count,) = to_unpaired(inputs, tmp_path / "out", **parameters)
        rows = tables.read(tmp_path / "out" / "rows.parquet", "unpaired_rows")
        assert rows["category"].to_list() == ["c"] * rows.height
        return rewards(rows), count

    return shape


def labels(rows: dict[str, tuple]) -> dict[str, bool | None]:
    return {name: label for name, (_, label, _) in rows.items()}


def test_a_label_is_what_the_source_says(shape):
    rows, _ = shape([("a", 1.0, True), ("b", -1.0, False), ("c", 0.3, None)])
    assert labels(rows) == {"a": True, "b": False, "c": None}


def test_a_threshold_is_reached_by_what_equals_it(shape):
    rows, _ = shape([("a", 0.7, None), ("b", 0.6, False), ("c", 0.5, True)], label="threshold", threshold=0.6)
    assert labels(rows) == {"a": True, "b": True, "c": False}


def test_the_grey_zone_around_a_threshold_is_left_out_and_counted(shape):
    answers = [("a", 1.0, None), ("b", 0.5, None), ("c", 0.25, None), ("d", 0.0, None)]
    rows, count = shape(answers, label="threshold", threshold=0.5, gap=0.5)
    assert labels(rows) == {"a": True, "d": False}
    assert count.filtered == {"label in the grey zone": 2}


def test_the_grey_zone_ends_where_it_says_on_both_sides(shape):
    answers = [(name, reward, None) for name, reward in zip("abcd", (0.7, 0.6, 0.4, 0.3), strict=True)]
    rows, _ = shape(answers, label="threshold", threshold=0.5, gap=0.2)  # 0.7 - 0.5 is less than 0.2 in floats
    assert labels(rows) == {"a": True, "d": False}


def test_the_mean_of_the_prompt_divides_its_answers(shape):
    rows, count = shape([("a", 4.0, None), ("b", 2.0, None), ("c", 0.0, None)], label="prompt_mean")
    assert labels(rows) == {"a": True, "c": False} and count.filtered == {"tie": 1}
    rows, _ = shape([("a", 4.0, None), ("b", 2.0, None), ("c", 0.0, None)], label="prompt_mean", ties="soft")
    assert labels(rows) == {"a": True, "b": None, "c": False}


@pytest.mark.parametrize("reward", [0.1, 0.8, 3.0])
def test_equal_answers_are_their_mean_whatever_it_rounds_to(shape, reward):
    rows, count = shape([(name, reward, None) for name in "abcdef"], label="prompt_mean")
    assert rows == {} and count.filtered == {"tie": 6}


def test_an_answer_without_a_reward_has_no_label_by_threshold(shape):
    rows, _ = shape([("a", None, True)], label="threshold", threshold=0.5)
    assert labels(rows) == {"a": None}


@pytest.mark.parametrize(("ties", "left"), [("drop", {"a", "c"}), ("soft", {"a", "b", "c"})])
def test_an_answer_that_won_as_much_as_it_lost_is_a_tie(shape, ties, left):
    rows, count = shape(given_pairs=[("a", "b", 1.0, 1), ("b", "c", 1.0, 1)], ties=ties)
    assert rows.keys() == left
    assert count.filtered == ({"tie": 1} if ties == "drop" else {})


def test_an_answer_both_rated_and_compared_is_one_row_with_its_rating(shape):
    rows, count = shape([("a", 0.25, None)], [("a", "b", 1.0, 1)])
    assert rows["a"][0] == 0.25
    assert set(rows) == {"a", "b"}
    # one rated answer and two sides of a pair come in, two answers go on
    assert (count.rows_in, count.out, count.merged) == (3, 2, {"in several sources": 1})


def test_nothing_rated_and_nothing_compared_gives_no_rows(shape):
    for label in ("source", "threshold", "prompt_mean"):
        rows, count = shape(label=label, sources=["s", "t"])
        assert (rows, count.rows_in) == ({}, 0)
