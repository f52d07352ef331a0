"""A reward model says how good an answer is; whoever runs it is handed in, this module knows no model."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rlhf_data.ids import MESSAGES

# (requests.parquet, rewards.parquet) → the recipe for the manifest. Requests are completion_id, prompt, completion;
# rewards are completion_id, reward, n_tokens, truncated, refused.
Rewarder = Callable[[Path, Path], dict[str, Any]]

DETAIL = "the reward model's tokenizer or its template cannot take this text"
_REQUEST = {"completion_id": pl.String, "prompt": MESSAGES, "completion": pl.String}


class Rewarded(NamedTuple):
    """What a reward model said of answers.

    Attributes:
        rewards: completion_row, reward; in the order given.
        refused: completion_row, code (why the text cannot be made tokens).
        recipe: by which model, and how text became tokens.
    """

    rewards: pl.DataFrame
    refused: pl.DataFrame
    recipe: dict[str, Any]


def reward(batches: Iterable[pl.DataFrame], rewarder: Rewarder, folder: Path) -> Rewarded:
    """Ask a reward model about every answer, all at once.

    Args:
        batches: completion_row, completion_id, prompt (messages), completion (the answer).
        rewarder: scores the completions it is asked for.
        folder: for two tables that vanish again.

    Returns:
        a reward or a refusal for every answer.
    """
    none = pl.DataFrame(schema={"completion_row": pl.UInt32, **_REQUEST})
    asked = pl.concat([none, *(batch.select(none.columns) for batch in batches)])
    with tempfile.TemporaryDirectory(dir=folder) as within:
        requests, rewards = Path(within) / "requests.parquet", Path(within) / "rewards.parquet"
        asked.select(*_REQUEST).write_parquet(requests)
        recipe = rewarder(requests, rewards)
        found = pl.read_parquet(rewards, columns=["completion_id", "reward", "refused"])
    told = asked.select("completion_row", "completion_id").join(
        found, on="completion_id", how="left", maintain_order="left", validate="m:1"
    )
    return Rewarded(
        told.filter(pl.col("reward").is_not_null()).select("completion_row", "reward"),
        told.filter(pl.col("reward").is_null()).select("completion_row", code="refused"),
        recipe,
    )
