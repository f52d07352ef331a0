"""The step that makes the paired table: ties, margins, pairs that are given, and what becomes of the rest."""

import polars as pl
import pytest

from rlhf_data import tables, texts
from rlhf_data.shape import paired
from rlhf_data.shape.paired import to_paired
from tests.rows import PROMPTS, compared, identity, index, named, rated


def answer(name: str, reward: float | None, *, prompt: str = "p", source: str = "s") -> dict:
    return {"completion": name, "reward": reward, "prompt": prompt, "source": source}


def given(chosen: str, rejected: str, preference: float = 1.0, *, votes: int = 1, source: str = "s") -> dict:
    return {"chosen": chosen, "rejected": rejected, "preference": preference, "votes": votes, "source": source}


@pytest.fixture
def shape(tmp_path):
    """The step on rated answers and compared pairs; gives its rows and its two counts."""

    def shape(answers=(), pairs=(), **parameters):
        for name in ("rate", "split", "out"):
            (tmp_path / name).mkdir(exist_ok=True)
        tables.write(rated(*answers), tmp_path / "rate" / "rated.parquet", "rated")
        tables.write(compared(*pairs, first=len(answers)), tmp_path / "rate" / "compared.parquet", "compared")
        splits = pl.DataFrame({"prompt_row": range(len(PROMPTS)), "split": ["train", "test"]})
        tables.write(splits, tmp_path / "split" / "splits.parquet", "splits")
        judgments = [{"completion": row["completion"], "kind": "rating", "file": row["completion"]} for row in answers]
        judgments += [{"completion": row["chosen"], "kind": "comparison", "file": "given"} for row in pairs]
        of = {row["completion"]: row["prompt"] for row in answers}
        text = index(tmp_path / "text", of=of, category="c", judgments=judgments)
        inputs = {"rate": tmp_path / "rate", "split": tmp_path / "split", "text": text}
        counts = to_paired(inputs, tmp_path / "out", **parameters)
        return tables.read(tmp_path / "out" / "rows.parquet", "paired_rows"), *counts

    return shape


def sides(rows: pl.DataFrame) -> set[str]:
    return {a + b for a, b in zip(named(rows["chosen_row"]), named(rows["rejected_row"]), strict=True)}


def test_a_tie_is_dropped_and_counted(shape):
    rows, candidates, answers = shape([answer("a", 1.0), answer("b", 1.0), answer("c", 0.0)], pairing="all")
    assert sides(rows) == {"ac", "bc"}
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
        rows, *_ = shape(pairs=[given("a", "b", 0.75, votes=4)], pairing=pairing, min_margin=0.0)
        assert rows.select("preference", "votes", "margin").rows() == [(0.75, 4, None)]


def test_a_given_tie_is_a_tie(shape):
    assert shape(pairs=[given("a", "b", 0.5)])[0].height == 0
    assert shape(pairs=[given("a", "b", 0.5)], ties="soft")[0]["preference"].to_list() == [0.5]


def test_as_given_leaves_rated_answers_out_and_says_so(shape):
    rows, _, answers = shape([answer("a", 1.0), answer("b", 0.0)], [given("c", "d")], pairing="as_given")
    assert sides(rows) == {"cd"}
    assert answers.filtered == {"not compared, and pairing is as_given": 2}


def test_two_rows_of_the_same_two_answers_are_one_pair_and_what_was_compared_wins(shape):
    answers = [answer("a", 1.0), answer("b", 0.0)]
    rows, candidates, _ = shape(answers, [given("b", "a", 0.9)], pairing="all")
    assert (named(rows["chosen_row"]), rows["preference"].to_list()) == (["b"], [0.9])
    assert candidates.merged == {"the same two answers": 1}


def test_an_answer_without_a_reward_or_a_partner_is_in_no_pair_and_counted(shape):
    rows, _, answers = shape([answer("a", 1.0), answer("b", None), answer("c", 3.0, prompt="q")], pairing="all")
    assert rows.height == 0
    assert answers.filtered == {"in no pair": 2, "no reward": 1}


def test_rows_have_their_split_category_lineage_and_an_even_weight(shape, tmp_path):
    rows, *_ = shape([answer("a", 1.0, prompt="q"), answer("b", 0.0, prompt="q")], pairing="all")
    known = texts.identify(texts.with_judgments(rows, texts.behind(tmp_path / "rate")), texts.names(tmp_path / "text"))
    (row,) = known.to_dicts()
    assert (row["prompt_id"], row["chosen_id"], row["rejected_id"]) == (identity("q"), identity("a"), identity("b"))
    assert (row["split"], row["category"], row["weight"]) == ("test", "c", 1.0)
    assert row["raw_ref"] == ["a#0", "b#1"]


def test_where_two_sources_hold_the_same_two_answers_the_first_of_the_spec_speaks(shape):
    pairs = [given("a", "b", 0.9, source="s"), given("b", "a", 0.8, source="t")]
    for sources, expected in ((["s", "t"], 0.9), (["t", "s"], 0.8)):
        rows, candidates, _ = shape(pairs=pairs, sources=sources)
        assert (rows["preference"].to_list(), rows["source"].to_list()) == ([expected], sources[:1])
        assert candidates.merged == {"the same two answers": 1}


def test_a_prompt_has_at_most_so_many_pairs_and_the_same_ones_each_time(shape):
    answers = [answer(name, float(k)) for k, name in enumerate("abcdef")]
    rows, candidates, counted = shape(answers, pairing="all", max_pairs_per_prompt=4)
    assert rows.height == 4
    assert candidates.filtered == {"over 4 of a prompt": 15 - 4}
    assert counted.out == len(set(rows["chosen_row"]) | set(rows["rejected_row"]))
    assert shape(answers, pairing="all", max_pairs_per_prompt=4)[0].equals(rows)
    assert shape(answers, pairing="all", max_pairs_per_prompt=3)[0].join(rows, on=rows.columns[:3]).height == 3
    assert shape(answers, pairing="all", max_pairs_per_prompt=15)[1].filtered == {}


def test_a_part_of_the_prompts_at_a_time_gives_the_same_rows_and_counts(shape, monkeypatch):
    # rows are in the order of prompts: a, b and c are p's, d, e and f are q's
    rewards = zip("abcdef", "pppqqq", [1.0, 1.0, 0.0, 2.0, 2.0, 0.0], strict=True)
    answers = [answer(name, reward, prompt=prompt) for name, prompt, reward in rewards]
    pairs = [given("c", "a", 0.75), given("b", "c", 0.5)]
    for parameters in ({"pairing": "all"}, {"pairing": "adjacent", "ties": "soft", "max_pairs_per_prompt": 2}):
        whole, *counts = shape(answers, pairs, **parameters)
        with monkeypatch.context() as patch:
            patch.setattr(paired, "PART", 1)
            cut, *counted = shape(answers, pairs, **parameters)
        assert cut.equals(whole) and counted == counts
        assert whole.select("prompt_row", "chosen_row", "rejected_row").rows() == sorted(
            whole.select("prompt_row", "chosen_row", "rejected_row").iter_rows()
        )


def test_nothing_rated_and_nothing_compared_gives_no_pairs(shape):
    for pairing in ("as_given", "best_vs_worst", "best_vs_random", "all", "adjacent"):
        rows, candidates, answers = shape(pairing=pairing, max_pairs_per_prompt=1, sources=["s", "t"])
        assert (rows.height, candidates.rows_in, answers.rows_in) == (0, 0, 0)
