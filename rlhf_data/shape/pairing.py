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
ENDS = ("best_vs_worst",)  # strategies that ask for the first and the last answer alone: no other place is drawn for


def propose(answers: pl.DataFrame, strategy: str, seed: int) -> pl.DataFrame:
    """Pairs of rated answers; chosen is rated at least as high as rejected.

    Args:
        answers: prompt_row, completion_row, source, reward (not null), votes, bits (of the answer's id); sorted by
            completion_row, one row per answer and source.
        strategy: a name of STRATEGIES.
        seed: of the keyed hashes.

    Returns:
        prompt_row, chosen_row, rejected_row, source, chosen_reward, rejected_reward, margin, votes; pairs are made
        within a source only.
    """
    keys = ["prompt_row"]
    if answers["source"].n_unique() > 1:
        keys.append("source")
        answers = answers.sort("prompt_row", pl.col("source").to_physical(), "completion_row")
    starts, sizes = _groups(answers, keys)
    order = _best_first(answers["reward"].to_numpy(), answers["bits"], starts, sizes, seed, strategy in ENDS)

    def draw(places: np.ndarray) -> np.ndarray:
        return ids.keyed_hash(answers["bits"].gather(order[places]), strategy, seed).to_numpy()

    chosen, rejected = STRATEGIES[strategy](Ranked(starts[sizes > 1], sizes[sizes > 1], draw))
    better, worse = order[chosen], order[rejected]
    columns = ("prompt_row", "completion_row", "reward", "votes")
    prompt, row, reward, votes = (answers[column].to_numpy() for column in columns)
    one = len(keys) == 1 and answers.height
    source = answers["source"].new_from_index(0, len(better)) if one else answers["source"].gather(better)
    chosen_reward, rejected_reward = reward[better], reward[worse]
    return pl.DataFrame(
        {
            "prompt_row": prompt[better],
            "source": source,
            "rejected_row": row[worse],
            "chosen_row": row[better],
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
            "margin": chosen_reward - rejected_reward,
            "votes": votes[better] + votes[worse],
        }
    )


def _groups(answers: pl.DataFrame, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where each prompt's answers begin, and how many they are."""
    new = np.zeros(answers.height, bool)
    new[:1] = True
    for key in keys:
        value = answers[key].to_physical().to_numpy()
        new[1:] |= value[1:] != value[:-1]
    starts = np.flatnonzero(new)
    return starts, np.diff(starts, append=answers.height)


def _best_first(
    reward: np.ndarray, bits: pl.Series, starts: np.ndarray, sizes: np.ndarray, seed: int, ends: bool
) -> np.ndarray:
    """The places of answers, best first within each group; only those with equal rewards are drawn for.

    With `ends`, the first and the last place of each group are right, and what is between may not be.
    """
    order = np.arange(len(reward))
    for size in np.unique(sizes[sizes > 1]).tolist():
        first, within = starts[sizes == size], np.arange(size)[:, None]
        rewards = reward[first + within]  # (size, groups): rows that long are compared at the speed of memory
        rank = _ahead(rewards)
        if ends:
            tied = ((rank == 0).sum(axis=0) > 1) | ~(rank == size - 1).any(axis=0)
        else:
            tied = rank.sum(axis=0) < size * (size - 1) // 2
        if tied.any():
            among = bits.gather((first[tied] + within).ravel())
            lots = ids.keyed_hash(among, "rank", seed).to_numpy().reshape(size, -1)
            rank[:, tied] += _ahead(rewards[:, tied], lots)
        order[first + rank] = first + within
    return order


def _ahead(rewards: np.ndarray, lots: np.ndarray | None = None) -> np.ndarray:
    """How many of its group each answer has before it: those with a higher reward, or, with lots, with an equal one.

    Args:
        rewards: (size, groups). For the few answers that a prompt has this is quicker than sorting them.
        lots: (size, groups), the lower first; of equal ones the one that stands first.
    """
    count = np.zeros(rewards.shape, np.int32)
    for k in range(len(rewards)):
        count += rewards[k] > rewards if lots is None else _drawn_first(k, rewards, lots)
    return count


def _drawn_first(k: int, rewards: np.ndarray, lots: np.ndarray) -> np.ndarray:
    """Which equal answers of its group the k-th precedes, (size, groups)."""
    later = np.arange(len(lots))[:, None] > k
    return (rewards[k] == rewards) & ((lots[k] < lots) | ((lots[k] == lots) & later))


def _offsets(ranked: Ranked, within: Callable[[int], Places]) -> Places:
    """The places of pairs, from their places within a prompt of each size."""
    chosen, rejected = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(ranked.sizes):
        starts = ranked.starts[ranked.sizes == size][:, None]
        better, worse = within(int(size))
        chosen.append((starts + better).ravel())
        rejected.append((starts + worse).ravel())
    return np.concatenate(chosen), np.concatenate(rejected)
