"""A snapshot's rows as token ids, in an order that depends on nothing but the seed and the rows' ids."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_64_intdigest

from rlhf_data.files import digest
from rlhf_data.rules.batch import counted_by
from rlhf_data.scoring.condition import with_classes
from rlhf_data.scoring.encode import Encoded, encode
from rlhf_data.scoring.packs import Group

_PAIRED = ("pair_id", "prompt_id", "prompt", "chosen", "rejected", "preference", "weight", "source", "category")
_UNPAIRED = ("completion_id", "prompt", "completion", "weight", "source", "category")
_LENGTHS = {"chosen": "chosen_n_tokens", "rejected": "rejected_n_tokens", "completion": "n_tokens"}
_TEXTS = {"prompt", "chosen", "rejected", "completion"}
_CURES = {
    "label": "label the rows",
    "margin": "pair rated answers, as compared ones have no gap of rewards",
    "reward": "rate the answers",
}


@dataclass(frozen=True)
class Rows:
    """Rows that can be trained on, and what became of the others.

    `groups[i]` holds a row's prompt with its completions: chosen and rejected, or the one completion;
    `mismatched[i]` its prompt with another prompt's completion, where the rule wants one. `columns` are the numbers
    and names of the same rows; `dropped` counts the rows left out, by code.
    """

    ids: list[str]
    groups: list[Group]
    mismatched: list[Group]
    columns: dict[str, list[Any]]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)


def manifest_of(snapshot: Path) -> dict[str, Any]:
    """The manifest of a snapshot.

    Raises:
        ValueError: the folder is no finished snapshot.
    """
    if not (snapshot / "_SUCCESS").is_file():
        raise ValueError(f"{snapshot} has no _SUCCESS: it is no snapshot, or one that was not finished; build it again")
    return json.loads((snapshot / "manifest.json").read_text())


def read_split(snapshot: Path, split: str) -> pa.Table:
    """All rows of one split of a published snapshot.

    Raises:
        ValueError: no snapshot, no such split in it, or a file that is not what was published.
    """
    told = {snapshot / file["path"]: file["digest"] for file in manifest_of(snapshot).get("files", [])}
    files = sorted({path for path in (*told, *(snapshot / "data").iterdir()) if path.match(f"{split}-*.parquet")})
    for path in files:
        if path in told and not (path.is_file() and digest(path) == told[path]):
            raise ValueError(f"{path} is damaged: remove {snapshot} and build it again")
    if not files:
        there = sorted({path.name.split("-")[0] for path in (snapshot / "data").glob("*.parquet")})
        raise ValueError(f"{snapshot} has no split {split}; it has: {', '.join(there) or 'no data'}")
    return pa.concat_tables([pq.ParquetFile(path).read() for path in files])


def read_rows(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    filled: Sequence[str],
    soft: bool,
    purpose: str,
    template: str,
    max_length: int,
    max_prompt_length: int | None,
    groups: bool = False,
    condition: Mapping[str, Any] | None = None,
) -> Rows:
    """Encode the rows of a split.

    Left out, and counted: rows of weight 0 (`weight.zero`), rows that `encode` refuses (by its code), and pairs whose
    answers are equal once truncated (`pair.equal_after_truncation`).

    Args:
        table: of `read_split`.
        tokenizer: of the model that will read them.
        kind: "paired" or "unpaired".
        filled: columns that must hold a value in every row.
        soft: whether preferences below 1 are welcome.
        purpose: who asks, a rule's name, for messages.
        template: see `encode`.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        groups: whether to read which rows are answers to one prompt.
        condition: see `scoring.condition`; each row's class then stands in its prompt.

    Raises:
        ValueError: a table of another kind, empty columns, soft preferences where none are welcome, or no row left.
    """
    reads = (*(_PAIRED if kind == "paired" else _UNPAIRED), *(["prompt_id"] if groups else []), *filled)
    if condition is not None and condition["on"] not in reads:
        reads = (*reads, condition["on"])
    if lacking := [name for name in reads if name not in table.column_names]:
        raise ValueError(f"{purpose} reads a snapshot of shape {kind}; this one has no column {', '.join(lacking)}")
    columns = {name: table[name].to_pylist() for name in reads}
    ids = columns[reads[0]]
    if condition is not None:
        columns["prompt"] = with_classes(columns["prompt"], columns[condition["on"]], condition)
    names = ["chosen", "rejected"] if kind == "paired" else ["completion"]
    if "mismatched_id" in filled:
        _require(columns, ["mismatched_id"], range(table.num_rows), ids, purpose)
        columns["mismatched"] = _partners(columns)
        names.append("mismatched")
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    encoded = {
        name: encode(tokenizer, columns["prompt"], columns[name], template=template, **lengths) for name in names
    }
    codes = _codes(columns["weight"], encoded)
    kept = [i for i, code in enumerate(codes) if code is None]
    if not kept:
        raise ValueError(f"no row of {table.num_rows} can be used for {purpose}; left out: {dict(Counter(codes))}")
    _require(columns, filled, kept, ids, purpose)
    if not soft:
        _refuse_soft(columns["preference"], kept, ids, purpose)
    if any(name.startswith("ref_") for name in filled):
        _check_lengths(table, encoded, kept, ids)
    _check_token_values(columns, filled, encoded, kept, ids)
    together = [Group(encoded[names[0]].prompt_ids[i], [encoded[n].completion_ids[i] for n in names]) for i in kept]
    partners = "mismatched" in encoded
    return Rows(
        ids=[ids[i] for i in kept],
        groups=[Group(prompt, completions[:1]) for prompt, completions in together] if partners else together,
        mismatched=[Group(prompt, completions[1:]) for prompt, completions in together] if partners else [],
        columns={name: [columns[name][i] for i in kept] for name in reads if name not in _TEXTS},
        dropped=dict(Counter(code for code in codes if code)),
    )


def order(ids: Sequence[str], *, seed: int, epoch: int) -> list[int]:
    """The permutation of an epoch: rows ranked by a keyed hash of their ids, so arriving rows move no others.

    >>> order(["a", "b", "c"], seed=0, epoch=0) == order(["a", "b", "c"], seed=0, epoch=0)
    True
    """
    key = xxh3_64_intdigest(f"order:{seed}:{epoch}".encode())
    return sorted(range(len(ids)), key=lambda i: (xxh3_64_intdigest(ids[i].encode(), seed=key), i))


def batches_from(
    step: int, ids: Sequence[str], *, size: int, seed: int, groups: Sequence[str] | None = None
) -> Iterator[list[int]]:
    """Row numbers of each optimizer step from `step` (counted from 0) on, epoch after epoch, without end.

    A function of the seed and the step alone, so a resumed run needs no other memory. An epoch's last batch may be
    smaller. Rows of the same name in `groups` are never parted: a batch is as many whole groups as have `size` rows on
    average, at least one.

    >>> next(batches_from(0, ["a", "b", "c", "d"], size=2, seed=0, groups=["p", "q", "q", "p"])) in ([0, 3], [1, 2])
    True
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(groups or ids):
        members.setdefault(name, []).append(i)
    names, taken = list(members), _units(len(members), len(ids), size)
    epoch, at = divmod(step, steps_of_epoch(ids, size=size, groups=groups))
    while True:
        ranked = order(names, seed=seed, epoch=epoch)
        for start in range(at * taken, len(names), taken):
            yield [i for unit in ranked[start : start + taken] for i in members[names[unit]]]
        epoch, at = epoch + 1, 0


def steps_of_epoch(ids: Sequence[str], *, size: int, groups: Sequence[str] | None = None) -> int:
    """Optimizer steps of one pass over the rows, as `batches_from` makes them."""
    units = len(set(groups)) if groups else len(ids)
    return math.ceil(units / _units(units, len(ids), size))


def _units(units: int, rows: int, size: int) -> int:
    """Rows, or whole groups, of a batch of `size` rows."""
    return size if units == rows else max(1, round(size * units / rows))


def _codes(weights: Sequence[float], encoded: dict[str, Encoded]) -> list[str | None]:
    """Why each row is left out; None where it is not."""
    codes = []
    for i, weight in enumerate(weights):
        refused = next((one.refused[i] for one in encoded.values() if one.refused[i]), None)
        codes.append(refused or ("weight.zero" if weight == 0 else None))
        if "rejected" in encoded and codes[i] is None:
            same = encoded["chosen"].completion_ids[i] == encoded["rejected"].completion_ids[i]
            codes[i] = "pair.equal_after_truncation" if same else None
    return codes


def _partners(columns: dict[str, list[Any]]) -> list[str]:
    """The text of each row's mismatched completion, which stands in the same split."""
    text = dict(zip(columns["completion_id"], columns["completion"], strict=True))
    if lost := [partner for partner in columns["mismatched_id"] if partner not in text]:
        raise ValueError(
            f"{len(lost)} mismatched partners are not in this split, the first is {lost[0]}: build the snapshot again"
        )
    return [text[partner] for partner in columns["mismatched_id"]]


def _require(
    columns: dict[str, list[Any]], needed: Sequence[str], rows: Sequence[int], ids: Sequence[str], rule: str
) -> None:
    for name in needed:
        empty = [ids[i] for i in rows if columns[name][i] is None]
        if not empty:
            continue
        cure = _CURES.get(name, "add `score:` to the pipeline and build it again")
        raise ValueError(
            f"{rule} needs {name}, which is empty in {len(empty)} of {len(rows)} rows (first {empty[0]}): {cure}"
        )


def _check_lengths(table: pa.Table, encoded: dict[str, Encoded], rows: Sequence[int], ids: Sequence[str]) -> None:
    """ValueError where a completion has other tokens than when its reference was scored, told by their number."""
    for name, column in _LENGTHS.items():
        if name in encoded and column in table.column_names:
            stored = table[column].to_pylist()
            now = [len(completion) for completion in encoded[name].completion_ids]
            if differing := [i for i in rows if stored[i] is not None and stored[i] != now[i]]:
                i = differing[0]
                raise ValueError(
                    f"{len(differing)} rows have other tokens than when their references were scored (first {ids[i]}: "
                    f"{name} had {stored[i]} tokens, has {now[i]}): the policy's tokenizer or template is not the "
                    "reference's; score with the policy's"
                )


def _check_token_values(
    columns: dict[str, list[Any]],
    filled: Sequence[str],
    encoded: dict[str, Encoded],
    rows: Sequence[int],
    ids: Sequence[str],
) -> None:
    """ValueError where stored token values are not one a token."""
    for name in filled:
        if counted_by(name) == "row":
            continue
        side = {"chosen_token": "chosen", "rejected_token": "rejected"}.get(counted_by(name), "completion")
        for i in rows:
            if len(columns[name][i]) != (n := len(encoded[side].completion_ids[i])):
                raise ValueError(
                    f"{ids[i]} has {len(columns[name][i])} values in {name}, and {n} tokens: they were measured with "
                    "another tokenizer, template or length; score the snapshot again"
                )


def _refuse_soft(preferences: Sequence[float], rows: Sequence[int], ids: Sequence[str], rule: str) -> None:
    if soft := [ids[i] for i in rows if preferences[i] != 1]:
        raise ValueError(
            f"{rule} takes every preference as certain, but {len(soft)} rows are soft (first {soft[0]}): "
            "drop ties and split votes when pairing, or take a rule that honours preference, such as dpo"
        )
