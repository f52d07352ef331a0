"""The weights of rules over the rows of a snapshot, as training would see them."""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import polars as pl

from rlhf_data import ids, rules
from rlhf_data.order import epoch_batches
from rlhf_data.rules import Completions, Pairs, PairWeights
from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif.array import Array
from rlhf_data.whatif.ask import KINDS, MISMATCHED, Asked, everything, reads, refused, sided, wanted

_CHUNK = 1 << 15  # rows of a rule that looks at each row alone, in one go: about what a core's cache holds
_STACKED = 1 << 19  # values of batches that are weighed side by side, at most
Columns = dict[str, np.ndarray]
KEYS = {"paired": "pair_id", "unpaired": "completion_id"}
SIDES = {"paired": ("chosen", "rejected"), "unpaired": ("completion",)}
_IDS = {"paired": ("chosen_id", "rejected_id"), "unpaired": ("completion_id",)}


class Weighed(NamedTuple):
    """Rows with their weights.

    Attributes:
        table: "paired" or "unpaired".
        rows: the snapshot's narrow columns, and `policy_…` log-probs where another policy was given.
        weights: the row's key, `weight`, and the columns of each rule; null where a row's weight is 0, as no step
            trains on it.
        asked: the rules, in order.
        left_out: why each of the others has no weights, by label; empty unless all rules were asked for.
        notes: what a reader has to know, such as rules that the trainer would refuse here.
    """

    table: str
    rows: pl.DataFrame
    weights: pl.DataFrame
    asked: list[Asked]
    left_out: dict[str, str]
    notes: list[str]


def weigh(
    snapshot: Path,
    asked: Sequence[Asked] | None,
    *,
    split: str = "train",
    policy: pl.DataFrame | Callable[[], pl.DataFrame] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    also: Sequence[str] = (),
) -> Weighed:
    """What each rule weighs each row of a split by.

    A row's weight in the snapshot is not multiplied in: it stands beside, in `weight`. Where a rule's weights depend on
    other rows, the batches are those of the trainer's first epoch: rows of weight > 0 in the order of their keyed
    hashes, about `batch_size` at a time, both classes in each where the rule wants them; a rule that remembers earlier
    steps stands at its first in each. Rules for single completions see a pair as two of them, chosen as desirable and
    rejected as not; one that reads neither label nor reward (imitation) sees the chosen one only, and the other's
    weight is 0.

    Args:
        snapshot: its folder, or that of its versions.
        asked: the rules; None asks for all that this snapshot can serve.
        split: which rows.
        policy: completion_id and logps (nats, summed) of the policy; None takes the reference as the policy, so that
            every log-ratio is 0. Mismatched partners stand in it under the id that their text has with this prompt.
        batch_size: rows of an optimizer step.
        seed: of the order of rows.
        also: further columns to read.

    Raises:
        ValueError: a rule that this snapshot cannot serve, with what would; log-probs that the policy lacks.
    """
    opened = Snapshot(snapshot)
    table = opened.manifest["table"]
    moved = policy is not None
    rows = _read(opened, table, split, asked or everything(), moved, also)
    counts = rows["weight"] > 0
    trained = rows.filter(counts)
    if not trained.height:
        raise ValueError(f"no row of the {rows.height} in {split} has a weight above 0: there is nothing to weigh")
    filled = [name for name in trained.columns if not trained[name].null_count()]
    reasons = {one.label: refused(one, table, filled, moved=moved) for one in asked or everything()}
    left_out = {label: reason for label, reason in reasons.items() if reason}
    if asked is not None and left_out:
        raise ValueError("\n".join(left_out.values()))
    served = [one for one in asked or everything() if one.label not in left_out]
    if policy is not None:
        rows = _with_policy(rows, table, policy if isinstance(policy, pl.DataFrame) else policy(), opened, split)
        _require_policy(rows.filter(counts), {name for one in served for name in _policy_columns(one, table)})
    columns = _columns(rows, moved)
    batches = _batches(served, rows, table, batch_size, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(lambda one: _weights(one, table, columns, batches.get(_classed(one, table))), served))
    named = _named(served, table, made)
    weights = pl.DataFrame([rows[KEYS[table]], rows["weight"], *named])
    if not counts.all():
        weights = weights.with_columns(pl.when(pl.col("weight") > 0).then(pl.col(s.name)).alias(s.name) for s in named)
    return Weighed(table, rows, weights, served, left_out, _notes(served, table, trained))


def columns_of(one: Asked, table: str, *, alone: bool) -> tuple[str, ...]:
    """The columns that a rule's weights have: w_chosen and w_rejected, or w, behind the rule unless it is alone."""
    names = ("w_chosen", "w_rejected") if table == "paired" else ("w",)
    return names if alone else tuple(f"{one.label}.{name}" for name in names)


def batch_of(
    one: Asked, table: str, columns: Columns, at: np.ndarray | slice, shape: tuple[int, int]
) -> Pairs | Completions:
    """The rows `at` as the rule sees them, in `shape[0]` batches of `shape[1]` rows.

    A rule for completions gets the chosen and the rejected one of each pair side by side, (batches, 2 · rows), or the
    chosen one alone where nothing tells them apart.
    """
    kind = KINDS[rules.table(one.rule)]
    sides = _seen_sides(one, table)

    def column(field: str) -> Array:
        if sides and field == "label":
            parts = [np.full(shape, side == "chosen") for side in sides]
        elif sides and field.endswith("mismatched_logps"):  # refused unless the policy is the reference
            parts = [np.zeros(shape) for _ in sides]
        else:
            parts = [columns[sided(field, table, side)][at].reshape(shape) for side in sides or ("",)]
        return Array(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))

    read = reads(one.rule) | {"weight"}
    unread = Array(np.broadcast_to(0.0, (shape[0], shape[1] * max(1, len(sides)))))
    return kind(**{f.name: column(f.name) if f.name in read else unread for f in fields(kind) if _is_given(f, read)})


def _is_given(field: Field, read: Collection[str]) -> bool:
    return field.name in read or field.default is MISSING  # a batch cannot be made without the latter


def _seen_sides(one: Asked, table: str) -> tuple[str, ...]:
    """The sides of a pair that a rule for completions sees; none where the rule is for this table."""
    if rules.table(one.rule) == table:
        return ()
    return ("chosen", "rejected") if {"label", "reward"} & reads(one.rule) else ("chosen",)


def _columns(rows: pl.DataFrame, moved: bool) -> Columns:
    """The numbers of the rows; unless the policy has moved, the reference's log-probs are its own too."""
    columns = {
        name: (rows[name].fill_null(False) if dtype == pl.Boolean else rows[name]).to_numpy()
        for name, dtype in rows.schema.items()
        if dtype.is_numeric() or dtype == pl.Boolean
    }
    policy = {} if moved else {f"policy_{name[4:]}": values for name, values in columns.items() if name[:4] == "ref_"}
    return columns | policy


def _weights(one: Asked, table: str, columns: Columns, batches: Sequence[np.ndarray] | None) -> tuple[np.ndarray, ...]:
    """One rule's weights of all rows: (chosen, rejected) of pairs, (w,) of completions; 0 where no batch has a row.

    `batches` are the row numbers of each step, where the rule looks at other rows than its own.
    """
    rule = rules.rule(one.rule, **one.parameters)
    height = len(columns["weight"])
    made = tuple(np.zeros(height) for _ in SIDES[table])

    def fill(at: np.ndarray | slice, shape: tuple[int, int]) -> None:
        given = _split(rule(batch_of(one, table, columns, at, shape)), _seen_sides(one, table), shape)
        for out, values in zip(made, given, strict=True):
            out[at] = values.reshape(-1)

    with np.errstate(all="ignore"):  # as torch: where a formula leaves the floats, the rule says so
        if batches is None:
            for start in range(0, height, _CHUNK):
                stop = min(start + _CHUNK, height)
                fill(slice(start, stop), (1, stop - start))
            return made
        sizes = np.array([len(batch) for batch in batches])
        for size in np.unique(sizes).tolist():  # they differ by a row or two
            alike = [batches[i] for i in np.flatnonzero(sizes == size).tolist()]
            together = max(1, _STACKED // size**2)
            for start in range(0, len(alike), together):
                stacked = alike[start : start + together]
                fill(np.concatenate(stacked), (len(stacked), size))
    return made


def _split(weights: PairWeights | Array, sides: tuple[str, ...], shape: tuple[int, int]) -> list[np.ndarray]:
    if isinstance(weights, PairWeights):
        return [np.broadcast_to(cast("Array", side).values, shape) for side in weights]
    values = np.broadcast_to(weights.values, (shape[0], shape[1] * max(1, len(sides))))
    if not sides:
        return [values]
    rejected = -values[:, shape[1] :] if len(sides) == 2 else np.zeros(shape)
    return [values[:, : shape[1]], rejected]


def _named(asked: Sequence[Asked], table: str, made: Sequence[tuple[np.ndarray, ...]]) -> list[pl.Series]:
    return [
        pl.Series(name, values)
        for one, columns in zip(asked, made, strict=True)
        for name, values in zip(columns_of(one, table, alone=len(asked) == 1), columns, strict=True)
    ]


def _classed(one: Asked, table: str) -> bool | None:
    """Whether a rule's batches are drawn from each class; None where it looks at each row alone."""
    if not rules.averages_over_batch(one.rule):
        return None
    return table == "unpaired" and rules.needs_both_classes(one.rule)


def _batches(
    asked: Sequence[Asked], rows: pl.DataFrame, table: str, size: int, seed: int
) -> dict[bool | None, list[np.ndarray]]:
    """Row numbers of the steps of the trainer's first epoch, rows of weight 0 left out, by `_classed`."""
    counted = np.flatnonzero(rows["weight"].to_numpy() > 0)
    named = rows[KEYS[table]].gather(counted).to_list()
    made: dict[bool | None, list[np.ndarray]] = {}
    for classed in {_classed(one, table) for one in asked} - {None}:
        labels = rows["label"].gather(counted).to_list() if classed else None
        batches = epoch_batches(named, size=size, seed=seed, epoch=0, labels=labels, even=True)
        made[classed] = [counted[batch] for batch in batches]
    return made


def _policy_columns(one: Asked, table: str) -> set[str]:
    """The columns that hold the policy's log-probs for a rule."""
    sides = _seen_sides(one, table) or ("",)
    return {sided(field, table, side) for field in reads(one.rule) if field.startswith("policy_") for side in sides}


def _read(
    opened: Snapshot, table: str, split: str, asked: Sequence[Asked], moved: bool, also: Sequence[str]
) -> pl.DataFrame:
    scan = opened.scan(split)
    there = scan.collect_schema().names()
    columns = {KEYS[table], "weight", *also}
    for one in asked:
        if not (rules.table(one.rule) == "paired" and table == "unpaired"):
            columns |= wanted(one.rule, table, moved=moved)
    if table == "paired":
        columns.add("preference")
    if moved:
        columns |= {*_IDS[table], *(("prompt_id", "mismatched_id") if table == "unpaired" else ())}
    return scan.select([name for name in there if name in columns]).collect()


def _with_policy(rows: pl.DataFrame, table: str, policy: pl.DataFrame, opened: Snapshot, split: str) -> pl.DataFrame:
    if lacking := [name for name in ("completion_id", "logps") if name not in policy.columns]:
        raise ValueError(f"the policy's table has no column {', '.join(lacking)}: it has {', '.join(policy.columns)}")
    scores = policy.select("completion_id", pl.col("logps").cast(pl.Float64))
    if scores["completion_id"].n_unique() < scores.height:
        raise ValueError("the policy's table has a completion_id twice: keep one log-prob of each completion")
    for key, side in zip(_IDS[table], SIDES[table], strict=True):
        name = "policy_logps" if table == "unpaired" else f"policy_{side}_logps"
        rows = rows.join(
            scores.rename({"completion_id": key, "logps": name}), on=key, how="left", maintain_order="left"
        )
    if table == "unpaired" and rows["mismatched_id"].null_count() < rows.height:
        named = rows.select("mismatched_id").with_columns(completion_id=partner_ids(rows, opened, split))
        found = named.join(scores, on="completion_id", how="left", maintain_order="left")["logps"]
        rows = rows.with_columns(found.alias(MISMATCHED))
    elif table == "unpaired":
        rows = rows.with_columns(pl.lit(None, dtype=pl.Float64).alias(MISMATCHED))
    return rows


def partner_ids(rows: pl.DataFrame, opened: Snapshot, split: str) -> pl.Series:
    """The id that each mismatched completion's text has under the row's own prompt."""
    texts = opened.scan(split).select(mismatched_id="completion_id", text="completion").collect()
    named = rows.select("prompt_id", "mismatched_id").join(texts, on="mismatched_id", how="left", maintain_order="left")
    return ids.completion_ids(named["prompt_id"], named["text"])


def _require_policy(rows: pl.DataFrame, columns: set[str]) -> None:
    for name in sorted(columns):
        if empty := rows[name].null_count():
            key = rows.filter(pl.col(name).is_null())[rows.columns[0]][0]
            raise ValueError(
                f"{name} is unknown in {empty} of {rows.height} rows (first {key}): the policy's table lacks these "
                "completions; score them too, or pass --run or --model, which does"
            )


def _notes(asked: Sequence[Asked], table: str, rows: pl.DataFrame) -> list[str]:
    notes = []
    if table == "paired":
        soft = int((rows["preference"] != 1).sum())
        hard = [o.label for o in asked if rules.table(o.rule) == "paired" and not rules.honours_preference(o.rule)]
        if soft and hard:
            notes.append(
                f"{soft:,} rows are soft or ties; {', '.join(hard)} would take them as certain, and the trainer refuses"
            )
        if crossed := [one.label for one in asked if rules.table(one.rule) != table]:
            notes.append(
                f"{', '.join(crossed)} weighs single completions: each pair is seen as two, chosen desirable and "
                "rejected not (imitation sees the chosen one only); the trainer wants an unpaired snapshot"
            )
    return notes
