"""The score store: log-probs by content, kept as Parquet shards that several scorers may write at once.

    <folder>/<recipe>/recipe.json, shard-<time>-<uuid>.parquet     key → token_logps, logps, n_tokens
    <folder>/index/<encoding>/recipe.json, part-….parquet          completion_id → key, n_tokens, truncated, refused

A file is written beside its place and renamed, so a reader never meets half of one and a kill loses at most the shard
in hand. Two scorers may both write a key; the value that was there first counts.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_128_hexdigest

from rlhf_data.files import whole_file, write_text

_SHARD = pa.schema(
    {"key": pa.string(), "token_logps": pa.list_(pa.float32()), "logps": pa.float64(), "n_tokens": pa.int32()}
)
_REWARDS = pa.schema({"key": pa.string(), "reward": pa.float64()})
INDEX = pa.schema(
    {
        "completion_id": pa.string(),
        "key": pa.string(),
        "n_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "refused": pa.string(),
    }
)


def ids_key(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """What a score is a function of, beside the recipe: xxh3-128 of the ids of prompt and completion.

    >>> ids_key([1, 2], [3]) == ids_key([1], [2, 3])
    False
    """
    numbers = np.asarray([len(prompt_ids), *prompt_ids, *completion_ids], dtype="<u4")
    return xxh3_128_hexdigest(numbers.tobytes())


class ScoreStore:
    """The scores of one recipe: content hash of the weights, dtype of the body, dtype of the head."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Open the store under `folder`, or start it; `recipe` is what changes the numbers."""
        self.folder = _recipe_folder(folder, recipe)

    def add(self, keys: Sequence[str], token_logps: Sequence[np.ndarray]) -> None:
        """Write one shard.

        Raises:
            ValueError: a log-prob that is not a number ≤ 0, with its key: better no score than a wrong one.
        """
        for key, values in zip(keys, token_logps, strict=True):
            if not (np.isfinite(values).all() and (values <= 1e-3).all()):
                raise ValueError(f"the log-probs of {key} are {values}: the model's weights or dtype do not hold up")
        if not keys:
            return
        offsets = np.concatenate([[0], np.cumsum([len(values) for values in token_logps])]).astype(np.int32)
        columns = {
            "key": pa.array(keys, pa.string()),
            "token_logps": pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(token_logps))),
            "logps": pa.array([values.sum(dtype=np.float64) for values in token_logps], pa.float64()),
            "n_tokens": pa.array(np.diff(offsets), pa.int32()),
        }
        _publish(pa.table(columns, schema=_SHARD), self.folder, "shard")

    def totals(self) -> pa.Table:
        """key, logps, n_tokens of every score; a key that two scorers wrote is there twice, the first one first."""
        return _read(self.folder, "shard", _SHARD, ["key", "logps", "n_tokens"])

    def token_logps(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """Per-token log-probs, float32, of each key; None where it has not been scored."""
        table = _read(self.folder, "shard", _SHARD, ["key", "token_logps"])
        at = pc.index_in(pa.array(keys, pa.string()), value_set=table["key"])
        return [None if i is None else table["token_logps"][i].values.to_numpy() for i in at.to_pylist()]


class RewardStore:
    """What one reward model says, by key: a number a completion."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Open the store under `folder`, or start it; `recipe` is what changes the numbers."""
        self.folder = _recipe_folder(folder, recipe)

    def add(self, rewards: Mapping[str, float]) -> None:
        """Write one shard.

        Raises:
            ValueError: a reward that is no number, with its key.
        """
        if wrong := [key for key, value in rewards.items() if not np.isfinite(value)]:
            raise ValueError(
                f"the reward of {wrong[0]} is {rewards[wrong[0]]}: the model's weights or dtype do not hold up"
            )
        if rewards:
            columns = {"key": list(rewards), "reward": list(rewards.values())}
            _publish(pa.table(columns, schema=_REWARDS), self.folder, "shard")

    def values(self) -> pa.Table:
        """key, reward of every score; a key that two scorers wrote is there twice, the first one first."""
        return _read(self.folder, "shard", _REWARDS, _REWARDS.names)


class Index:
    """completion_id → key under one encoding: tokenizer, template, lengths."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Open the index under the store's `folder`, or start it; `recipe` is what changes token ids."""
        self.folder = _recipe_folder(folder / "index", recipe)

    def add(self, rows: pa.Table) -> None:
        """Write one part with the columns of INDEX."""
        if rows.num_rows:
            _publish(rows.select(INDEX.names).cast(INDEX), self.folder, "part")

    def find(self, completion_ids: pa.Array) -> pa.Table:
        """The INDEX row of each id, in order; null in every other column where the id is new."""
        table = _read(self.folder, "part", INDEX, INDEX.names)
        found = table.take(pc.index_in(completion_ids, value_set=table["completion_id"]))
        return found.set_column(0, "completion_id", completion_ids)


def lookup(totals: pa.Table, keys: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Row of `totals` that holds each key's score; null where there is none."""
    return pc.index_in(keys, value_set=totals["key"], skip_nulls=True)


def digest(recipe: dict[str, Any]) -> str:
    """The name of a recipe's folder."""
    return xxh3_128_hexdigest(json.dumps(recipe, sort_keys=True).encode())


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a whole Parquet file or none."""
    with whole_file(path) as beside:
        pq.write_table(table, beside, compression="zstd", compression_level=1, write_page_checksum=True)


def _recipe_folder(parent: Path, recipe: dict[str, Any]) -> Path:
    folder = parent / digest(recipe)
    if not (folder / "recipe.json").is_file():
        write_text(folder / "recipe.json", json.dumps(recipe, indent=2, sort_keys=True))
    return folder


def _publish(table: pa.Table, folder: Path, prefix: str) -> None:
    # Names sort by time, so "first" means the same to every reader.
    write_parquet(table, folder / f"{prefix}-{time.time_ns():020d}-{uuid.uuid4().hex}.parquet")


def _read(folder: Path, prefix: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    wanted = pa.schema([schema.field(column) for column in columns])
    tables: Iterable[pa.Table] = (_read_one(path, wanted) for path in sorted(folder.glob(f"{prefix}-*.parquet")))
    return pa.concat_tables([wanted.empty_table(), *tables]).combine_chunks()


def _read_one(path: Path, wanted: pa.Schema) -> pa.Table:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        return file.read(columns=wanted.names).select(wanted.names).cast(wanted)
    except (pa.ArrowException, KeyError, OSError) as error:
        hint = f"delete it and score again ({error})"
        raise ValueError(f"{path} is not a readable part of the score store: {hint}") from error
