"""The step that makes the paired table: ties, margins, pairs that are given, and what becomes of the rest."""

import polars as pl
import pytest

from rlhf_data import ids, tables
from rlhf_data.shape.paired import to_paired

P, Q = "p" * 32, "q" * 32


def answer(name: str, reward: float | None, *, prompt: str = P, source: str = "s") -> dict:
    row = {"prompt_id": prompt, "completion_id": name * 32, "reward": reward, "votes": 1, "source": source}
    return row | {"raw_ref": [f"{source}#{name}"]}


def given(chosen: str, rejected: str, preference: float = 1.0, *, votes: int = 1, source: str = "s") -> dict:
    row = {"prompt_id": P, "chosen_id": chosen * 32, "rejected_id": rejected * 32, "preference": preference}
    return row | {"votes": votes, "source": source, "raw_ref": [f"{source}#{chosen}{rejected}"]}


@pytest.fixture
def shape(tmp_path):
    """The step on rated answers and compared pairs; gives its rows and its two counts."""

    def shape(rated=(), compared=(), **parameters):
        for name in ("rate", "split", "out"):
            (tmp_path / name).mkdir(exist_ok=True)
        for name, rows in (("rated", rated), ("compared", compared)):
            frame = pl.DataFrame(list(rows), infer_schema_length=None) if rows else tables.empty(name)
            tables.write(frame, tmp_path / "rate" / f"{name}.parquet", name)
        splits = pl.DataFrame({"prompt_id": [P, Q], "split": ["train", "test"]})
        tables.write(splits, tmp_path / "split" / "splits.parquet", "splits")
        inputs = {"rate": tmp_path / "rate", "split": tmp_path / "split"}
        counts = to_paired(inputs, tmp_path / "out", **parameters)
        return tables.read(tmp_path / "out" / "rows.parquet", "paired_rows"), *counts

    return shape


def named(rows: pl.DataFrame) -> set[str]:
    return {chosen[0] + rejected[0] for chosen, rejected in rows.select("chosen_id", "rejected_id").iter_rows()}


def test_a_tie_is_dropped_and_counted(shape):
    rows, candidates, answers = shape([answer("a", 1.0), answer("b", 1.0), answer("c", 0.0)], pairing="all")
    assert named(rows) == {"ac", "bc"}
    assert candidates.filtered == {"tie": 1}
    assert answers.out == 3


def test_a_tie_that_is_kept_is_a_preference_of_one_half(shape):
    rows, candidates, _ = shape([answer("a", 1.0), answer("b", 1.0)], pairing="all", ties="soft")
    assert rows.select("preference", "margin").rows() == [(0.5, 0.0)]
    assert candidates.filtered == {}


@pytest.mark.parametrize("ties", ["drop", "soft"])
def test_no_pair_has_a_margin_under_the_smallest_but_a_tie_that_is_kept(shape, ties):
    rewards = [0.0, 0.0, 0.5, 1.0, 1.25]
    rows, candidates, _ = shape(
        [answer(n, r) for n, r in zip("abcde", rewards, strict=True)], pairing="all", min_margin=0.5, ties=ties
    )
    margins = rows["margin"].sort().to_list()
    # 0.5 three times, 0.75, 1 twice, 1.25 twice; the pair of 1 and 1.25 is too close, that of 0 and 0 a tie
    assert margins == [0.0] * (ties == "soft") + [0.5, 0.5, 0.5, 0.75, 1.0, 1.0, 1.25, 1.25]
    assert candidates.filtered == {"margin under 0.5": 1} | ({"tie": 1} if ties == "drop" else {})


def test_given_pairs_are_taken_whatever_the_strategy_and_keep_their_doubt(shape):
    for pairing in ("as_given", "best_vs_worst"):
        rows, *_ = shape(compared=[given("a", "b", 0.75, votes=4)], pairing=pairing, min_margin=0.0)
        assert rows.select("preference", "votes", "margin").rows() == [(0.75, 4, None)]


def test_a_given_tie_is_a_tie(shape):
    assert shape(compared=[given("a", "b", 0.5)])[0].height == 0
    assert shape(compared=[given("a", "b", 0.5)], ties="soft")[0]["preference"].to_list() == [0.5]


def test_as_given_leaves_rated_answers_out_and_says_so(shape):
    rows, _, answers = shape([answer("a", 1.0), answer("b", 0.0)], [given("c", "d")], pairing="as_given")
    assert named(rows) == {"cd"}
    assert answers.filtered == {"not compared, and pairing is as_given": 2}


def test_two_rows_of_the_same_two_answers_are_one_pair_and_what_was_compared_wins(shape):
    rated = [answer("a", 1.0), answer("b", 0.0)]
    rows, candidates, _ = shape(rated, [given("b", "a", 0.9)], pairing="all")
    assert rows.select(pl.col("chosen_id").str.head(1), "preference").rows() == [("b", 0.9)]
    assert candidates.merged == {"the same two answers": 1}


def test_an_answer_without_a_reward_or_a_partner_is_in_no_pair_and_counted(shape):
    rows, _, answers = shape([answer("a", 1.0), answer("b", None), answer("c", 3.0, prompt=Q)], pairing="all")
    assert rows.height == 0
    assert answers.filtered == {"in no pair": 2, "no reward": 1}


def test_rows_have_their_ids_split_lineage_and_an_even_weight(shape):
    rows, *_ = shape([answer("a", 1.0, prompt=Q), answer("b", 0.0, prompt=Q)], pairing="all")
    (row,) = rows.to_dicts()
    (pair_id,) = ids.pair_ids(pl.Series(["a" * 32]), pl.Series(["b" * 32]), "pair_id")
    assert (row["pair_id"], row["split"], row["weight"]) == (pair_id, "test", 1.0)
    assert row["raw_ref"] == ["s#a", "s#b"]
