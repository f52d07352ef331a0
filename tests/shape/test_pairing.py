"""Pairs of rated answers: what holds for every strategy, and for each."""

from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data.shape.pairing import STRATEGIES

few = settings(deadline=None, max_examples=50)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
KEY = ["prompt_id", "chosen_id", "rejected_id"]
# Rewards of the answers of each prompt; halves, so that many tie.
rewards = st.lists(st.lists(st.integers(-2, 4).map(lambda n: n / 2), max_size=6), max_size=5)


def rated(*prompts, start: int = 0) -> pl.DataFrame:
    rows = [
        (f"p{p}", "s", f"p{p}a{a}", reward, "c", 1, [f"f#{p}.{a}"])
        for p, group in enumerate(prompts, start)
        for a, reward in enumerate(group)
    ]
    return pl.DataFrame(
        rows,
        schema={
            "prompt_id": pl.String,
            "source": pl.String,
            "completion_id": pl.String,
            "reward": pl.Float64,
            "category": pl.String,
            "votes": pl.Int64,
            "raw_ref": pl.List(pl.String),
        },
        orient="row",
    )


@every_strategy
@few
@given(groups=rewards, seed=st.integers(0, 3))
def test_a_pair_is_of_two_answers_of_one_prompt_the_better_one_chosen(strategy, groups, seed):
    answers = rated(*groups)
    pairs = strategy(answers, seed)
    reward = dict(answers.select("completion_id", "reward").iter_rows())
    prompt = dict(answers.select("completion_id", "prompt_id").iter_rows())
    for pair in pairs.iter_rows(named=True):
        chosen, rejected = pair["chosen_id"], pair["rejected_id"]
        assert chosen != rejected
        assert prompt[chosen] == prompt[rejected] == pair["prompt_id"]
        assert (pair["chosen_reward"], pair["rejected_reward"]) == (reward[chosen], reward[rejected])
        assert pair["margin"] == reward[chosen] - reward[rejected] >= 0
        assert (pair["votes"], len(pair["raw_ref"])) == (2, 2)
    assert not pairs.select(KEY).is_duplicated().any()


@every_strategy
@few
@given(groups=rewards, data=st.data())
def test_the_order_of_rows_does_not_matter(strategy, groups, data):
    answers = rated(*groups)
    shuffled = answers[data.draw(st.permutations(range(answers.height)))] if answers.height else answers
    assert_frame_equal(strategy(shuffled, 0).sort(KEY), strategy(answers, 0).sort(KEY))


@every_strategy
@few
@given(groups=rewards, more=rewards)
def test_prompts_that_arrive_change_no_pair_of_the_others(strategy, groups, more):
    before = rated(*groups)
    after = strategy(pl.concat([rated(*more, start=100), before]), 0)
    kept = after.filter(pl.col("prompt_id").is_in(before["prompt_id"].implode()))
    assert_frame_equal(kept.sort(KEY), strategy(before, 0).sort(KEY))


@every_strategy
@few
@given(groups=rewards)
def test_every_strategy_takes_some_of_all_pairs(strategy, groups):
    unordered = {frozenset(pair) for pair in STRATEGIES["all"](rated(*groups), 0).select(KEY[1:]).iter_rows()}
    taken = {frozenset(pair) for pair in strategy(rated(*groups), 0).select(KEY[1:]).iter_rows()}
    assert taken <= unordered


@few
@given(groups=rewards)
def test_best_vs_worst_pairs_are_among_all_pairs(groups):
    some, every = (STRATEGIES[name](rated(*groups), 0).select(KEY).rows() for name in ("best_vs_worst", "all"))
    assert set(some) <= set(every)


@few
@given(groups=rewards)
def test_the_number_of_pairs_is_what_counting_by_hand_gives(groups):
    answers = rated(*groups)
    several = [group for group in groups if len(group) > 1]
    assert STRATEGIES["all"](answers, 0).height == sum(len(list(combinations(group, 2))) for group in groups)
    assert STRATEGIES["adjacent"](answers, 0).height == sum(len(group) - 1 for group in several)
    for name in ("best_vs_worst", "best_vs_random"):
        pairs = STRATEGIES[name](answers, 0).sort("prompt_id")
        assert pairs.height == len(several)
        assert pairs["chosen_reward"].to_list() == [max(group) for group in several]
    worst = STRATEGIES["best_vs_worst"](answers, 0).sort("prompt_id")["rejected_reward"]
    assert worst.to_list() == [min(group) for group in several]


@few
@given(groups=rewards)
def test_adjacent_pairs_are_a_chain_from_best_to_worst(groups):
    for _, chain in STRATEGIES["adjacent"](rated(*groups), 0).group_by("prompt_id"):
        assert set(chain["chosen_id"].to_list()[1:]) <= set(chain["rejected_id"])
        assert chain["margin"].sum() == chain["chosen_reward"].max() - chain["rejected_reward"].min()


def test_answers_of_two_sources_are_not_paired():
    answers = pl.concat([rated([1.0, 0.0]), rated([5.0]).with_columns(source=pl.lit("t"), completion_id=pl.lit("x"))])
    for strategy in STRATEGIES.values():
        assert strategy(answers, 0)["source"].to_list() == ["s"]


def test_the_seed_decides_which_answer_is_drawn():
    answers = rated(*[[1.0, 0.0, 0.0, 0.0]] * 20)
    drawn = [STRATEGIES["best_vs_random"](answers, seed).sort(KEY)["rejected_id"].to_list() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({one[-2:] for one in drawn[0]}) == 3
