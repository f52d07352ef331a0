"""Rated answers → pairs, by a named strategy.

A strategy gets answers that are sorted by prompt, best first, and gives places in that order: of the chosen answer and
of the rejected one. It handles numbers only: a million answers take a tenth of a second. To add one: write the function
and name it in STRATEGIES. Which of several equal answers comes first is decided by a keyed hash of the ids, so neither
the order of rows nor new prompts change it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from rlhf_data import ids


class Ranked(NamedTuple):
    """Answers sorted by prompt and source, best first.

    Attributes:
        starts: (groups,) where each prompt's answers begin.
        sizes: (groups,) how many each has, at least 2.
        draw: gives a keyed hash (n,) for the answers at the places (n,) given.
    """

    starts: np.ndarray
    sizes: np.ndarray
    draw: Callable[[np.ndarray], np.ndarray]


Places = tuple[np.ndarray, np.ndarray]  # of the chosen answers, of the rejected ones


def best_vs_worst(ranked: Ranked) -> Places:
    """The highest rated answer of each prompt against the lowest rated one."""
    return ranked.starts, ranked.starts + ranked.sizes - 1


def best_vs_random(ranked: Ranked) -> Places:
    """The highest rated answer of each prompt against one of its others, drawn by keyed hash."""
    best, others = _offsets(ranked, lambda size: (np.zeros(size - 1, np.int64), np.arange(1, size)))
    drawn = ranked.draw(others)
    order = np.lexsort((drawn, best))
    first = np.flatnonzero(np.diff(best[order], prepend=-1))
    return best[order][first], others[order][first]


def every(ranked: Ranked) -> Places:
    """Every two answers of each prompt."""
    return _offsets(ranked, lambda size: np.triu_indices(size, k=1))


def adjacent(ranked: Ranked) -> Places:
    """Each answer of a prompt against the next lower rated one."""
    return _offsets(ranked, lambda size: (np.arange(size - 1), np.arange(1, size)))


STRATEGIES: dict[str, Callable[[Ranked], Places]] = {
    "best_vs_worst": best_vs_worst,
    "best_vs_random": best_vs_random,
    "all": every,
    "adjacent": adjacent,
}


def propose(answers: pl.DataFrame, completion_ids: pl.Series, strategy: str, seed: int) -> pl.DataFrame:
    """Pairs of rated answers; chosen is rated at least as high as rejected.

    Args:
        answers: prompt_row, completion_row, source, reward (not null), votes; one row per answer and source.
        completion_ids: the id of each answer; equal rewards are ordered by them.
        strategy: a name of STRATEGIES.
        seed: of the keyed hashes.

    Returns:
        prompt_row, chosen_row, rejected_row, source, chosen_reward, rejected_reward, margin, votes; pairs are made
        within a source only.
    """
    ordered, named = _best_first(answers, completion_ids, seed)
    new = (ordered["prompt_row"] != ordered["prompt_row"].shift(1)) | (ordered["source"] != ordered["source"].shift(1))
    starts = np.flatnonzero(new.fill_null(True).to_numpy())
    sizes = np.diff(starts, append=ordered.height)

    def draw(places: np.ndarray) -> np.ndarray:
        return ids.keyed_hash(named.gather(places), strategy, seed).to_numpy()

    chosen, rejected = STRATEGIES[strategy](Ranked(starts[sizes > 1], sizes[sizes > 1], draw))
    better, worse = ordered[chosen], ordered[rejected]
    return pl.DataFrame(
        {
            "prompt_row": better["prompt_row"],
            "chosen_row": better["completion_row"],
            "rejected_row": worse["completion_row"],
            "source": better["source"],
            "chosen_reward": better["reward"],
            "rejected_reward": worse["reward"],
            "margin": better["reward"] - worse["reward"],
            "votes": better["votes"] + worse["votes"],
        }
    )


def _best_first(answers: pl.DataFrame, completion_ids: pl.Series, seed: int) -> tuple[pl.DataFrame, pl.Series]:
    """Answers by prompt and source, best first, and their ids; only where rewards are equal is anything hashed."""
    keys = ["prompt_row", "source"] if answers["source"].n_unique() > 1 else ["prompt_row"]
    narrow = answers.select("prompt_row", "completion_row", pl.col("source"), "reward", "votes")
    order = narrow.select(
        pl.arg_sort_by(
            *(pl.col(key).to_physical() if key == "source" else pl.col(key) for key in keys),
            pl.col("reward"),
            pl.col("completion_row"),
            descending=[*[False] * len(keys), True, False],
        )
    ).to_series()
    ordered, named = narrow[order], completion_ids.gather(order)
    same = (ordered["reward"] == ordered["reward"].shift(1)).fill_null(False)
    for key in keys:
        same &= (ordered[key] == ordered[key].shift(1)).fill_null(False)
    tied = (same | same.shift(-1).fill_null(False)).arg_true()
    if len(tied):
        run = (~same).cum_sum().gather(tied)
        lots = ids.keyed_hash(named.gather(tied), "rank", seed)
        drawn = pl.DataFrame([run.alias("run"), lots.alias("lot")]).select(pl.arg_sort_by("run", "lot")).to_series()
        places = np.arange(ordered.height)
        places[tied.to_numpy()] = tied.gather(drawn).to_numpy()
        ordered, named = ordered[places], named.gather(places)
    return ordered, named


def _offsets(ranked: Ranked, within: Callable[[int], Places]) -> Places:
    """The places of pairs, from their places within a prompt of each size."""
    chosen, rejected = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(ranked.sizes):
        starts = ranked.starts[ranked.sizes == size][:, None]
        better, worse = within(int(size))
        chosen.append((starts + better).ravel())
        rejected.append((starts + worse).ravel())
    return np.concatenate(chosen), np.concatenate(rejected)
