"""Rated answers → pairs, by a named strategy.

A strategy gets answers with a reward and returns pairs of them, ordered so that chosen is rated at least as high as
rejected. To add one: write the function and name it in STRATEGIES. Which of several equal answers is taken is decided
by a keyed hash of the ids, so neither the order of rows nor new prompts change it.
"""

from collections.abc import Callable

import polars as pl

from rlhf_data import ids

GROUP = ["prompt_id", "source"]
SIDE = ["completion_id", "reward", "category", "votes", "raw_ref"]


def best_vs_worst(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The highest rated answer of each prompt against the lowest rated one."""
    ranked = _ranked(answers, seed)
    return _sides(ranked.group_by(GROUP, maintain_order=True).first(), ranked.group_by(GROUP).last())


def best_vs_random(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The highest rated answer of each prompt against one of its others, drawn by keyed hash."""
    ranked = _ranked(answers, seed)
    best = ranked.group_by(GROUP, maintain_order=True).first()
    others = ranked.join(best, on=[*GROUP, "completion_id"], how="anti")
    draw = ids.keyed_hash(others["completion_id"], "best_vs_random", seed)
    drawn = others.with_columns(_draw=draw).sort("_draw", "completion_id").group_by(GROUP).first()
    return _sides(best, drawn)


def every(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every two answers of each prompt."""
    ranked = _ranked(answers, seed)
    pairs = ranked.join(ranked, on=GROUP, suffix="_2").filter(pl.col("_place") < pl.col("_place_2"))
    return _named(pairs)


def adjacent(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Each answer of a prompt against the next lower rated one."""
    ranked = _ranked(answers, seed)
    below = ranked.with_columns(pl.col("_place") - 1)
    return _named(ranked.join(below, on=[*GROUP, "_place"], suffix="_2"))


STRATEGIES: dict[str, Callable[[pl.DataFrame, int], pl.DataFrame]] = {
    "best_vs_worst": best_vs_worst,
    "best_vs_random": best_vs_random,
    "all": every,
    "adjacent": adjacent,
}


def _ranked(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Answers sorted by prompt, best first, with their `_place` in the prompt from 0."""
    tie_break = ids.keyed_hash(answers["completion_id"], "rank", seed)
    ranked = (
        answers.select(*GROUP, *SIDE)
        .with_columns(_tie=tie_break)
        .sort(*GROUP, "reward", "_tie", "completion_id", descending=[False, False, True, False, False])
    )
    return ranked.with_columns(_place=pl.int_range(pl.len(), dtype=pl.Int64).over(GROUP)).drop("_tie")


def _sides(chosen: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    pairs = chosen.join(rejected, on=GROUP, suffix="_2")
    return _named(pairs.filter(pl.col("completion_id") != pl.col("completion_id_2")))


def _named(pairs: pl.DataFrame) -> pl.DataFrame:
    """Two sides, joined, as pairs: the better one is the left one."""
    return pairs.select(
        "prompt_id",
        "source",
        "category",
        chosen_id="completion_id",
        rejected_id="completion_id_2",
        chosen_reward="reward",
        rejected_reward="reward_2",
        margin=pl.col("reward") - pl.col("reward_2"),
        votes=pl.col("votes") + pl.col("votes_2"),
        raw_ref=pl.concat_list("raw_ref", "raw_ref_2").list.unique().list.sort(),
    )
