"""The score store: log-probs by content, kept as Parquet shards that several scorers may write at once.

    <folder>/<recipe>/recipe.json, shard-….parquet            key → token_logps?, logps, n_tokens, mean_log_p2?
    <folder>/<recipe>/recipe.json, reward-….parquet           key → reward
    <folder>/index/<encoding>/recipe.json, part-….parquet     completion_id → key, n_tokens, truncated, refused

The recipe is what the numbers depend on beside a key's token ids. `shards.py` says how a folder is read and written:
a reader never meets half a file, a kill loses at most the shard in hand, and of two values for a key the first counts.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_hexdigest

from rlhf_data import files
from rlhf_data.scoring import shards
from rlhf_data.scoring.shards import Kind

SCORES = Kind(
    "shard",
    pa.schema(
        {
            "key": pa.string(),
            "token_logps": pa.list_(pa.float32()),
            "logps": pa.float64(),
            "n_tokens": pa.int32(),
            "mean_log_p2": pa.float64(),
            "has_tokens": pa.bool_(),  # true or null: known without reading the lists
        }
    ),
)
REWARDS = Kind("reward", pa.schema({"key": pa.string(), "reward": pa.float64()}))
INDEX = Kind(
    "part",
    pa.schema(
        {
            "completion_id": pa.string(),
            "key": pa.string(),
            "n_tokens": pa.int32(),
            "truncated": pa.bool_(),
            "refused": pa.string(),
        }
    ),
)
KINDS = (SCORES, REWARDS, INDEX)

# Nats a token that two passes of one model may differ by, by its dtype: packing and the machine change the order of
# sums, and in bfloat16 what is rounded.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}


def ids_key(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """What a score is a function of, beside the recipe: xxh3-128 of the ids of prompt and completion.

    >>> ids_key([1, 2], [3]) == ids_key([1], [2, 3])
    False
    """
    numbers = np.asarray([len(prompt_ids), *prompt_ids, *completion_ids], dtype="<u4")
    return xxh3_128_hexdigest(numbers.tobytes())


class ScoreStore:
    """The log-probs of one recipe: content hash of the weights, dtype of the body, dtype of the head."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """The store under `folder`, perhaps empty yet; `recipe` is what changes the numbers."""
        self.folder, self.recipe = folder / digest(recipe), recipe

    def add(
        self,
        keys: Sequence[str],
        token_logps: Sequence[np.ndarray],
        mean_log_p2: Sequence[float] | None = None,
        *,
        tokens: bool = True,
    ) -> None:
        """Write one shard.

        Args:
            keys: of `ids_key`.
            token_logps: of each key's completion, (n_tokens,), float32, nats.
            mean_log_p2: the mean over its tokens of log Σp² over the vocabulary, where it was measured.
            tokens: keep the single tokens' log-probs; their sum is kept always.

        Raises:
            ValueError: a log-prob that is not a number ≤ 0, with its key: better no score than a wrong one.
        """
        for key, values in zip(keys, token_logps, strict=True):
            if not (np.isfinite(values).all() and (values <= 1e-3).all()):
                raise ValueError(f"the log-probs of {key} are {values}: the model's weights or dtype do not hold up")
        if not keys:
            return
        lengths = [len(values) for values in token_logps]
        columns: dict[str, Any] = {
            "key": pa.array(keys, pa.string()),
            "logps": pa.array([values.sum(dtype=np.float64) for values in token_logps], pa.float64()),
            "n_tokens": pa.array(lengths, pa.int32()),
        }
        if tokens:
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            columns["token_logps"] = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(token_logps)))
            columns["has_tokens"] = pa.array([True] * len(keys))
        if mean_log_p2 is not None:
            columns["mean_log_p2"] = pa.array(mean_log_p2, pa.float64())
        _start(self.folder, self.recipe)
        shards.publish(pa.table(columns), self.folder, SCORES)

    def find(self, keys: pa.Array | pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """`columns` of SCORES for each key, in order; null where it has not been scored."""
        return shards.find(self.folder, SCORES, keys, columns)

    def has(self, keys: pa.Array | pa.ChunkedArray, *, tokens: bool = False, squares: bool = False) -> pa.Array:
        """Whether each key has been scored, with its single tokens, with mean log Σp²; a null key never was."""
        wanted = ["logps", *["has_tokens"] * tokens, *["mean_log_p2"] * squares]
        found = self.find(keys, wanted)
        there = found["logps"].is_valid()
        for column in wanted[1:]:
            there = pc.and_(there, found[column].is_valid())
        return there.combine_chunks() if isinstance(there, pa.ChunkedArray) else there

    def token_logps(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """Per-token log-probs, float32, of each key; None where they are not stored."""
        found = self.find(pa.array(keys, pa.string()), ["token_logps"])["token_logps"]
        return [values.values.to_numpy() if values.is_valid else None for values in found]


class RewardStore:
    """What one reward model says, by key: a number a completion."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """The store under `folder`, perhaps empty yet.

        Args:
            folder: the score store.
            recipe: what changes the numbers, with `what`: "reward", so that it is no recipe of log-probs.
        """
        self.folder, self.recipe = folder / digest(recipe), recipe

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
            _start(self.folder, self.recipe)
            shards.publish(pa.table(columns, schema=REWARDS.schema), self.folder, REWARDS)

    def find(self, keys: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
        """The reward of each key, float64, in order; null where it has not been scored."""
        return shards.find(self.folder, REWARDS, keys, ["reward"])["reward"]


class Index:
    """completion_id → key under one encoding: tokenizer, template, lengths."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        """The index under the store's `folder`, perhaps empty yet; `recipe` is what changes token ids."""
        self.folder, self.recipe = folder / "index" / digest(recipe), recipe

    def add(self, rows: pa.Table) -> None:
        """Write one part with the columns of INDEX."""
        if rows.num_rows:
            _start(self.folder, self.recipe)
            shards.publish(rows, self.folder, INDEX)

    def find(self, completion_ids: pa.Array) -> pa.Table:
        """The INDEX row of each id, in order; null in every other column where the id is new."""
        found = shards.find(self.folder, INDEX, completion_ids, INDEX.schema.names)
        return found.set_column(0, "completion_id", completion_ids)


class Compacted(NamedTuple):
    """What became of one recipe's folder: its shards before and now."""

    folder: Path
    before: int
    now: int


def compact(store: Path) -> list[Compacted]:
    """Join the shards of every recipe and index into few; others may score meanwhile.

    Raises:
        ValueError: a shard that cannot be read, by its path.
    """
    done = []
    for folder in recipe_folders(store):
        for kind in KINDS:
            if shards.shards(folder, kind):
                done.append(Compacted(folder, *shards.compact(folder, kind)))
    return done


class Merged(NamedTuple):
    """What a recipe's folder of another store brought: keys that were new, and keys that were here already."""

    folder: Path
    recipe: dict[str, Any]
    added: int
    known: int


def merge(store: Path, other: Path) -> list[Merged]:
    """Take over what another store has: one that was filled on another machine.

    Of a key that both have, the value here stays. Nothing is written where a value there is another one.

    Args:
        store: gets what it lacks.
        other: another store's folder; it is only read.

    Raises:
        ValueError: `other` is no store, a recipe is not what its folder says, or the two differ by more than the order
            of sums explains.
    """
    folders = recipe_folders(other)
    if not folders:
        raise ValueError(f"{other} holds no scores: give the folder `scores` of another workspace")
    _refuse_conflicts(store, other, folders)
    done = []
    for theirs in folders:
        recipe = _recipe_of(theirs)
        ours = store / theirs.relative_to(other)
        _start(ours, recipe)
        for kind in KINDS:
            added = known = 0
            for table in shards.every(theirs, kind):
                new = table.filter(_brings_something(table, ours, kind))
                added, known = added + new.num_rows, known + table.num_rows - new.num_rows
                if new.num_rows:
                    shards.publish(new, ours, kind)
            if added or known:
                done.append(Merged(ours, recipe, added, known))
    return done


def recipe_folders(store: Path) -> list[Path]:
    """The folders of a store's recipes and indexes."""
    return [path.parent for pattern in ("*/recipe.json", "index/*/recipe.json") for path in sorted(store.glob(pattern))]


def digest(recipe: dict[str, Any]) -> str:
    """The name of a recipe's folder."""
    return xxh3_128_hexdigest(json.dumps(recipe, sort_keys=True).encode())


def _start(folder: Path, recipe: dict[str, Any]) -> None:
    """Make a recipe's folder where it is new."""
    if not (folder / "recipe.json").is_file():
        files.write_text(folder / "recipe.json", json.dumps(recipe, indent=2, sort_keys=True))


def _recipe_of(folder: Path) -> dict[str, Any]:
    recipe = files.read_json(folder / "recipe.json")
    if not isinstance(recipe, dict) or digest(recipe) != folder.name:
        raise ValueError(f"{folder / 'recipe.json'} is damaged: it is not the recipe that its folder is named after")
    return recipe


def _refuse_conflicts(store: Path, other: Path, folders: list[Path]) -> None:
    for theirs in folders:
        recipe = _recipe_of(theirs)
        ours = store / theirs.relative_to(other)
        for kind in KINDS if ours.is_dir() else ():
            for table in shards.every(theirs, kind):
                here = shards.find(ours, kind, table[kind.key], kind.schema.names)
                differing = np.flatnonzero(_differ(table, here, kind, recipe))
                if len(differing):
                    row = int(differing[0])
                    raise ValueError(
                        f"{theirs} and {ours} disagree on {len(differing)} keys, the first is "
                        f"{table[kind.key][row].as_py()}: {_in_words(here, row)} here, {_in_words(table, row)} there; "
                        "one of the machines computes wrongly: find out which, remove its folder and score again"
                    )


def _differ(theirs: pa.Table, ours: pa.Table, kind: Kind, recipe: dict[str, Any]) -> np.ndarray:
    """(rows,) whether both have a value and it is another one."""
    if kind is INDEX:
        both = ours["completion_id"].is_valid().to_numpy()
        same = np.ones(len(both), bool)
        for column in ("key", "refused"):
            same &= pc.fill_null(theirs[column], "").to_numpy() == pc.fill_null(ours[column], "").to_numpy()
        return both & ~same
    value, per = ("reward", 1) if kind is REWARDS else ("logps", theirs["n_tokens"].to_numpy())
    here, there = (table[value].to_numpy().astype(np.float64) for table in (ours, theirs))
    tolerance = TOLERANCE.get(recipe.get("dtype", ""), max(TOLERANCE.values()))
    with np.errstate(invalid="ignore"):
        return np.abs(here - there) / per > tolerance


def _in_words(table: pa.Table, row: int) -> str:
    return ", ".join(
        f"{name} {table[name][row].as_py()}"
        for name in ("logps", "reward", "key", "refused")
        if name in table.schema.names
    )


def _brings_something(theirs: pa.Table, ours: Path, kind: Kind) -> pa.Array:
    """Whether each row holds a value that is not here."""
    columns = [name for name in kind.schema.names[1:] if name != "token_logps"]
    here = shards.find(ours, kind, theirs[kind.key], [kind.key, *columns])
    brings = pc.is_null(here[kind.key])
    for column in columns:
        brings = pc.or_(brings, pc.and_(theirs[column].is_valid(), here[column].is_null()))
    return brings
