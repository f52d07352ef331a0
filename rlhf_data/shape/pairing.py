"""Rated answers → pairs, by a named strategy.

A strategy gets prompts with equally many answers, ranked, and gives ranks: of the chosen answers and of the rejected
ones. It handles numbers only: all pairs of a million answers take a tenth of a second. To add one: write the function
and name it in STRATEGIES. Which of several equal answers ranks first is decided by a keyed hash of the ids, so neither
the order of rows nor new prompts change it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
import polars as pl

from rlhf_data import ids

_BLOCK = 1 << 16  # answers ranked at a time: what is made on the way stays in a CPU's cache
_WORKERS = 2  # blocks at once: numpy leaves the interpreter to others
_FEW = 16  # answers of a prompt up to which comparing each with each is quicker than sorting them


class Ranked(NamedTuple):
    """Prompts that have equally many answers each of a source; the answer of rank 0 is the best.

    Attributes:
        size: answers of each prompt, at least 2.
        draw: gives keyed hashes (k, prompts) of the answers of the ranks (k,) given.
    """

    size: int
    draw: Callable[[np.ndarray], np.ndarray]


# Of the chosen answers, of the rejected ones: (k,), the same for all prompts, or (k, prompts).
Ranks = tuple[np.ndarray, np.ndarray]


def best_vs_worst(ranked: Ranked) -> Ranks:
    """The highest rated answer of each prompt against the lowest rated one."""
    return np.array([0]), np.array([ranked.size - 1])


def best_vs_random(ranked: Ranked) -> Ranks:
    """The highest rated answer of each prompt against one of its others, drawn by keyed hash."""
    others = np.arange(1, ranked.size)
    return np.array([0]), 1 + ranked.draw(others).argmin(axis=0, keepdims=True)


def every(ranked: Ranked) -> Ranks:
    """Every two answers of each prompt."""
    return np.triu_indices(ranked.size, k=1)


def adjacent(ranked: Ranked) -> Ranks:
    """Each answer of a prompt against the next lower rated one."""
    return np.arange(ranked.size - 1), np.arange(1, ranked.size)


STRATEGIES: dict[str, Callable[[Ranked], Ranks]] = {
    "best_vs_worst": best_vs_worst,
    "best_vs_random": best_vs_random,
    "all": every,
    "adjacent": adjacent,
}


def propose(answers: pl.DataFrame, strategy: str, seed: int) -> Iterator[pl.DataFrame]:
    """Pairs of rated answers, by where they stand, some prompts' at a time; chosen is rated at least as high.

    Args:
        answers: prompt_row, completion_row, source, reward (not null), bits (of the answer's id); sorted by
            completion_row, one row per answer and source.
        strategy: a name of STRATEGIES.
        seed: of the keyed hashes.

    Yields:
        chosen_at, rejected_at: places in `answers` (UInt32), and margin, in no order; pairs are made within a source
        only. The first frame has no rows, so there always is one; while one is used the next are made.
    """
    reward, bits = answers["reward"].to_numpy(), answers["bits"].to_numpy()

    def pairs(places: np.ndarray) -> pl.DataFrame:
        """Of prompts whose answers (size, prompts) stand there."""
        rewards = reward.take(places)
        rank = _ranks(rewards, _drawn(bits.take(places), "rank", seed))
        ranked, rewards = _by_rank(places, rank), _by_rank(rewards, rank)
        ranks = STRATEGIES[strategy](Ranked(len(ranked), lambda some: _drawn(bits.take(ranked[some]), strategy, seed)))
        (chosen, high), (rejected, low) = ((_at(ranked, one), _at(rewards, one)) for one in ranks)
        found = {"chosen_at": chosen, "rejected_at": rejected, "margin": high - low}
        return pl.DataFrame(found, schema_overrides={"chosen_at": pl.UInt32, "rejected_at": pl.UInt32})

    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(pairs, chain([np.empty((2, 0), np.uint32)], _prompts(answers)))


def rows_of(answers: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs that `propose` made of these answers, and other columns they may have, as rows.

    Returns:
        prompt_row, source, chosen_row, rejected_row, chosen_reward, rejected_reward, votes, and those columns.
    """
    chosen = answers.select("prompt_row", "source", "completion_row", "reward", "votes")[pairs["chosen_at"]]
    rejected = answers.select("completion_row", "reward", "votes")[pairs["rejected_at"]]
    return pairs.drop("chosen_at", "rejected_at").with_columns(
        chosen["prompt_row"],
        chosen["source"],
        chosen_row=chosen["completion_row"],
        rejected_row=rejected["completion_row"],
        chosen_reward=chosen["reward"],
        rejected_reward=rejected["reward"],
        votes=chosen["votes"] + rejected["votes"],
    )


def _prompts(answers: pl.DataFrame) -> Iterator[np.ndarray]:
    """Where the answers of prompts that have several stand, (size, prompts), _BLOCK answers or so at a time."""
    keys, order = ["prompt_row"], None
    if answers["source"].n_unique() > 1:
        keys.append("source")
        by = ("prompt_row", pl.col("source").to_physical(), "completion_row")
        order = answers.select(pl.arg_sort_by(*by)).to_series().to_numpy()
    new = np.zeros(answers.height, bool)
    new[:1] = True
    for key in keys:
        value = answers[key].to_physical().to_numpy()
        value = value if order is None else value[order]
        new[1:] |= value[1:] != value[:-1]
    starts = np.flatnonzero(new).astype(np.uint32)
    sizes = np.diff(starts, append=answers.height)
    for size in np.flatnonzero(np.bincount(sizes[sizes > 1])).tolist():
        first = starts[sizes == size]
        step = max(1, _BLOCK // size)
        for at in range(0, len(first), step):
            places = first[at : at + step] + np.arange(size, dtype=np.uint32)[:, None]
            yield places if order is None else order[places]


def _ranks(rewards: np.ndarray, lots: np.ndarray) -> np.ndarray:
    """The rank (size, prompts) of each answer among its prompt's; the best has 0.

    Args:
        rewards: (size, prompts).
        lots: (size, prompts), of equal rewards the lowest first; of equal ones the one that stands first.
    """
    size, prompts = rewards.shape
    if size > _FEW:
        order = np.lexsort((lots, -rewards), axis=0)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(size)[:, None], axis=0)
        return rank
    rank = np.zeros((size, prompts), np.int8)
    for i, j in combinations(range(size), 2):
        ahead = (rewards[j] > rewards[i]) | ((rewards[j] == rewards[i]) & (lots[j] < lots[i]))
        rank[i] += ahead
        rank[j] += ~ahead
    return rank


def _by_rank(values: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """What is of each answer, (size, prompts), the best answers' first."""
    placed, prompts = np.empty_like(values), values.shape[1]
    placed.reshape(-1)[rank * np.int64(prompts) + np.arange(prompts)] = values
    return placed


def _at(ranked: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """What is of the answers of these ranks, one after the other."""
    return (ranked[ranks] if ranks.ndim == 1 else np.take_along_axis(ranked, ranks, axis=0)).ravel()


def _drawn(bits: np.ndarray, purpose: str, seed: int) -> np.ndarray:
    """Keyed hashes of answers, in the shape of their bits."""
    return ids.keyed_hash(pl.Series(bits.ravel()), purpose, seed).to_numpy().reshape(bits.shape)
