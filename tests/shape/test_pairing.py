"""Pairs of rated answers: what holds for every strategy, and for each."""

from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data import ids
from rlhf_data.shape import pairing
from rlhf_data.shape.pairing import STRATEGIES, propose, rows_of

few = settings(deadline=None, max_examples=50)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
KEY = ["prompt_id", "chosen_id", "rejected_id"]
# Rewards of the answers of each prompt; halves, so that many tie.
rewards = st.lists(st.lists(st.integers(-2, 4).map(lambda n: n / 2), max_size=6), max_size=5)


def rated(*prompts, start: int = 0) -> pl.DataFrame:
    """Answers by id; those of an answer are hex digits, the last two of them its place in its prompt."""
    rows = [
        (f"p{p:03}", f"{p:02x}{a:02x}" * 8, "s", reward, 1)
        for p, group in enumerate(prompts, start)
        for a, reward in enumerate(group)
    ]
    columns = {
        "prompt_id": pl.String,
        "completion_id": pl.String,
        "source": pl.Categorical,
        "reward": pl.Float64,
        "votes": pl.Int64,
    }
    return pl.DataFrame(rows, schema=columns, orient="row")


def pairs_of(answers: pl.DataFrame, strategy: str, seed: int = 0) -> pl.DataFrame:
    """A strategy's pairs by id; rows are numbered by prompt and, in each prompt, as they come."""
    by_prompt = answers.sort("prompt_id", maintain_order=True)
    numbered = by_prompt.with_columns(
        prompt_row=(pl.col("prompt_id").rank("dense") - 1).cast(pl.UInt32),
        completion_row=pl.int_range(pl.len(), dtype=pl.UInt32),
        bits=ids.bits(by_prompt["completion_id"]),
    )
    # Of an answer of two sources, both rows have one number: that of the first.
    numbered = numbered.with_columns(pl.col("completion_row").first().over("completion_id")).sort("completion_row")
    narrow = numbered.select("prompt_row", "completion_row", "source", "reward", "votes", "bits")
    found = rows_of(narrow, pl.concat(propose(narrow, strategy, seed)))
    prompts = dict(numbered.select("prompt_row", "prompt_id").iter_rows())
    named = dict(numbered.select("completion_row", "completion_id").iter_rows())
    return found.select(
        pl.exclude("prompt_row", "chosen_row", "rejected_row"),
        prompt_id=pl.Series([prompts[row] for row in found["prompt_row"]], dtype=pl.String),
        chosen_id=pl.Series([named[row] for row in found["chosen_row"]], dtype=pl.String),
        rejected_id=pl.Series([named[row] for row in found["rejected_row"]], dtype=pl.String),
    )


@every_strategy
@few
@given(groups=rewards, seed=st.integers(0, 3))
def test_a_pair_is_of_two_answers_of_one_prompt_the_better_one_chosen(strategy, groups, seed):
    answers = rated(*groups)
    pairs = pairs_of(answers, strategy, seed)
    reward = dict(answers.select("completion_id", "reward").iter_rows())
    prompt = dict(answers.select("completion_id", "prompt_id").iter_rows())
    for pair in pairs.iter_rows(named=True):
        chosen, rejected = pair["chosen_id"], pair["rejected_id"]
        assert chosen != rejected
        assert prompt[chosen] == prompt[rejected] == pair["prompt_id"]
        assert (pair["chosen_reward"], pair["rejected_reward"]) == (reward[chosen], reward[rejected])
        assert pair["margin"] == reward[chosen] - reward[rejected] >= 0
        assert pair["votes"] == 2
    assert not pairs.select(KEY).is_duplicated().any()


@every_strategy
@few
@given(groups=rewards, data=st.data())
def test_neither_the_order_of_rows_nor_the_number_of_one_matters(strategy, groups, data):
    answers = rated(*groups)
    shuffled = answers[data.draw(st.permutations(range(answers.height)))] if answers.height else answers
    assert_frame_equal(pairs_of(shuffled, strategy).sort(KEY), pairs_of(answers, strategy).sort(KEY))


@every_strategy
@few
@given(groups=rewards, compared=st.sampled_from([0, 16]), block=st.integers(1, 9))
def test_neither_how_answers_are_ranked_nor_how_many_at_a_time_matters(strategy, groups, compared, block):
    answers = rated(*groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "_FEW", compared)  # beyond so many, answers are sorted, not compared one by one
        patch.setattr(pairing, "_BLOCK", block)
        found = pairs_of(answers, strategy)
    assert_frame_equal(found.sort(KEY), pairs_of(answers, strategy).sort(KEY))


@every_strategy
@few
@given(groups=rewards, more=rewards)
def test_prompts_that_arrive_change_no_pair_of_the_others(strategy, groups, more):
    before = rated(*groups)
    after = pairs_of(pl.concat([rated(*more, start=100), before]), strategy)
    kept = after.filter(pl.col("prompt_id").is_in(before["prompt_id"].implode()))
    assert_frame_equal(kept.sort(KEY), pairs_of(before, strategy).sort(KEY))


@every_strategy
@few
@given(groups=rewards)
def test_every_strategy_takes_some_of_all_pairs(strategy, groups):
    unordered = {frozenset(pair) for pair in pairs_of(rated(*groups), "all").select(KEY[1:]).iter_rows()}
    taken = {frozenset(pair) for pair in pairs_of(rated(*groups), strategy).select(KEY[1:]).iter_rows()}
    assert taken <= unordered


@few
@given(groups=rewards)
def test_best_vs_worst_pairs_are_among_all_pairs(groups):
    some, every = (pairs_of(rated(*groups), name).select(KEY).rows() for name in ("best_vs_worst", "all"))
    assert set(some) <= set(every)


@few
@given(groups=rewards)
def test_the_number_of_pairs_is_what_counting_by_hand_gives(groups):
    answers = rated(*groups)
    several = [group for group in groups if len(group) > 1]
    assert pairs_of(answers, "all", 0).height == sum(len(list(combinations(group, 2))) for group in groups)
    assert pairs_of(answers, "adjacent", 0).height == sum(len(group) - 1 for group in several)
    for name in ("best_vs_worst", "best_vs_random"):
        pairs = pairs_of(answers, name).sort("prompt_id")
        assert pairs.height == len(several)
        assert pairs["chosen_reward"].to_list() == [max(group) for group in several]
    worst = pairs_of(answers, "best_vs_worst", 0).sort("prompt_id")["rejected_reward"]
    assert worst.to_list() == [min(group) for group in several]


@few
@given(groups=rewards)
def test_adjacent_pairs_are_a_chain_from_best_to_worst(groups):
    for _, chain in pairs_of(rated(*groups), "adjacent").group_by("prompt_id"):
        assert set(chain["chosen_id"].to_list()[1:]) <= set(chain["rejected_id"])
        assert chain["margin"].sum() == chain["chosen_reward"].max() - chain["rejected_reward"].min()


def test_answers_of_two_sources_are_not_paired():
    other = rated([5.0]).with_columns(source=pl.lit("t", dtype=pl.Categorical), completion_id=pl.lit("f" * 32))
    for strategy in STRATEGIES:
        assert pairs_of(pl.concat([rated([1.0, 0.0]), other]), strategy)["source"].to_list() == ["s"]


def test_of_one_answer_that_two_sources_rate_each_source_makes_its_own_pairs():
    other = rated([0.0, 5.0]).with_columns(source=pl.lit("t", dtype=pl.Categorical))
    for strategy in STRATEGIES:
        pairs = pairs_of(pl.concat([rated([1.0, 0.0]), other]), strategy)
        assert sorted(pairs.select("source", "margin").iter_rows()) == [("s", 1.0), ("t", 5.0)]


def test_the_seed_decides_which_answer_is_drawn():
    answers = rated(*[[1.0, 0.0, 0.0, 0.0]] * 20)
    drawn = [pairs_of(answers, "best_vs_random", seed).sort(KEY)["rejected_id"].to_list() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({one[-2:] for one in drawn[0]}) == 3
