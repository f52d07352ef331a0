"""A snapshot's rows as token ids and numbers: flat arrays, no object a row but its id."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rlhf_data import rules
from rlhf_data.files import digest
from rlhf_data.rules.batch import counted_by
from rlhf_data.scoring.condition import with_classes
from rlhf_data.scoring.models import load_tokenizer
from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.tokens import Groups, Ragged, Tokens, complete, folder, read_tokens

_PAIRED = ("pair_id", "prompt_id", "prompt", "chosen", "rejected", "preference", "weight", "source", "category")
_UNPAIRED = ("completion_id", "prompt", "completion", "weight", "source", "category")
_LENGTHS = {"chosen": "chosen_n_tokens", "rejected": "rejected_n_tokens", "completion": "n_tokens"}
_TEXTS = {"prompt", "chosen", "rejected", "completion"}
_CURES = {
    "label": "label the rows",
    "margin": "pair rated answers, as compared ones have no gap of rewards",
    "reward": "rate the answers",
    "mismatched_id": "a split of one prompt only has no mismatched partners; it needs answers to several",
    "ref_mismatched_logps": "a split of one prompt only has no mismatched partners, else add `score:` and build again",
}


@dataclass(frozen=True)
class Rows:
    """Rows that can be trained on, and what became of the others.

    `groups[i]` holds a row's prompt with its completions: chosen and rejected, or the one completion;
    `mismatched[i]` its prompt with another prompt's completion, where the rule wants one. As `read_rows` makes them,
    they are views of the split's token ids. `columns` are the numbers and names of the same rows, arrays (n,), or one
    array a row where a row has a value a token; `dropped` counts the rows left out, by code.
    """

    ids: Sequence[str]
    groups: Sequence[Group]
    mismatched: Sequence[Group]
    columns: dict[str, Sequence[Any] | np.ndarray]
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


def read_split(snapshot: Path, split: str, *, texts: bool = True) -> pa.Table:
    """All rows of one split of a published snapshot, without kept raw columns, which no model reads.

    Without texts too, where their token ids are stored.

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
    names = pq.read_schema(files[0]).names
    columns = [name for name in names if not name.startswith("kept_") and (texts or name not in _TEXTS)]
    return pa.concat_tables([pq.ParquetFile(path).read(columns=columns) for path in files])


def rows_of(
    snapshot: Path,
    split: str,
    rule: rules.Rule,
    *,
    filled: Sequence[str],
    model: dict[str, Any],
    cache: Path,
    template: str,
    max_length: int,
    max_prompt_length: int,
    condition: Mapping[str, Any] | None = None,
) -> Rows:
    """What a rule trains on of a snapshot's split; token ids are kept with the snapshot, and then no text is read.

    Args:
        snapshot: its folder.
        split: whose rows.
        rule: what reads them.
        filled: columns that must hold a value in every row.
        model: reference of the model whose tokenizer it is.
        cache: folder for digests, and for token ids that cannot stand beside their snapshot.
        template: see `encode`, and so are the lengths.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        condition: see `scoring.condition`.

    Raises:
        ValueError: see `read_split` and `read_rows`.
    """
    encoding = {"template": template, "max_length": max_length, "max_prompt_length": max_prompt_length}
    told = {**encoding, "condition": condition}
    stored = folder(snapshot, manifest_of(snapshot), split, model=model, cache=cache, **told) / split
    return read_rows(
        read_split(snapshot, split, texts=not has_tokens(stored, filled)),
        load_tokenizer(model, cache=cache),
        kind=rules.table(rule),
        filled=filled,
        soft=rules.honours_preference(rule) or rules.table(rule) == "unpaired",
        purpose=rules.label(rule),
        groups=rules.keeps_groups(rule),
        stored=stored,
        **told,
    )


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
    stored: Path | None = None,
    condition: Mapping[str, Any] | None = None,
) -> Rows:
    """Encode the rows of a split.

    Left out, and counted: rows of weight 0 (`weight.zero`), rows that `encode` refuses (by its code), and pairs whose
    answers are equal once truncated (`pair.equal_after_truncation`).

    Args:
        table: of `read_split`; without texts where `has_tokens`.
        tokenizer: of the model that will read them.
        kind: "paired" or "unpaired".
        filled: columns that must hold a value in every row.
        soft: whether preferences below 1 are welcome.
        purpose: who asks, a rule's name, for messages.
        template: see `encode`.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        groups: whether to read which rows are answers to one prompt.
        stored: the folder of `scoring.tokens.folder` and in it the split's name: token ids that are there are read,
            others are made and kept there; None keeps nothing.
        condition: see `scoring.condition`; each row's class then stands in its prompt.

    Raises:
        ValueError: a table of another kind, empty columns, soft preferences where none are welcome, or no row left.
    """
    reads = (*(_PAIRED if kind == "paired" else _UNPAIRED), *(["prompt_id"] if groups else []), *filled)
    if condition is not None and condition["on"] not in reads:
        reads = (*reads, condition["on"])
    known = stored is not None and _TEXTS.isdisjoint(table.column_names)
    if lacking := [name for name in reads if name not in table.column_names and not (known and name in _TEXTS)]:
        raise ValueError(f"{purpose} reads a snapshot of shape {kind}; this one has no column {', '.join(lacking)}")
    ids = table[reads[0]]
    if condition is not None and not known:
        at = table.column_names.index("prompt")
        classes = with_classes(table["prompt"].to_pylist(), table[condition["on"]].to_pylist(), condition)
        table = table.set_column(at, "prompt", pa.chunked_array([pa.array(classes)]))
    sides = ("chosen", "rejected") if kind == "paired" else ("completion",)
    encoding = {"template": template, "max_length": max_length, "max_prompt_length": max_prompt_length}
    texts = {name: _text(table, name) for name in ("prompt", *sides)}
    tokens = read_tokens(texts, len(table), tokenizer, stored=stored, **encoding)
    partners = None
    if "mismatched_id" in filled:
        _require(table.select([reads[0], "mismatched_id"]), ["mismatched_id"], purpose)
        texts = {"prompt": _text(table, "prompt"), "mismatched": _partners(table)}
        beside = None if stored is None else _places(stored, True)[1]
        partners = read_tokens(texts, len(table), tokenizer, stored=beside, **encoding)
    codes = _codes(table["weight"].to_numpy(), [tokens] if partners is None else [tokens, partners])
    kept = np.flatnonzero(codes == None)  # noqa: E711 (of each element)
    if not len(kept):
        raise ValueError(f"no row of {table.num_rows} can be used for {purpose}; left out: {dict(Counter(codes))}")
    rows = table.select([name for name in dict.fromkeys((*reads, *_lengths(table))) if name not in _TEXTS]).take(kept)
    _require(rows, filled, purpose)
    if not soft:
        _refuse_soft(rows["preference"].to_numpy(), rows[reads[0]], purpose)
    lengths = {side: tokens.lengths(side)[kept] for side in sides}
    if any(name.startswith(("ref_", "old_")) for name in filled):
        _check_lengths(rows, lengths)
    _check_token_values(rows, filled, lengths)
    return Rows(
        ids=ids.take(kept).to_pylist(),
        groups=_groups(tokens, sides, kept),
        mismatched=[] if partners is None else _groups(partners, ("mismatched",), kept),
        columns={name: _array(rows[name]) for name in dict.fromkeys(reads) if name not in _TEXTS},
        dropped=dict(Counter(code for code in codes.tolist() if code)),
    )


def has_tokens(stored: Path, filled: Sequence[str]) -> bool:
    """Whether all token ids that `read_rows` would need for these columns are stored, so that no text is read."""
    return all(map(complete, _places(stored, "mismatched_id" in filled)))


def _places(stored: Path, partners: bool) -> list[Path]:
    """Where the ids of the rows stand, and those of their mismatched partners."""
    return [stored, *([stored.with_name(f"{stored.name}-mismatched")] if partners else [])]


def _text(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    return table[name] if name in table.column_names else None


def _lengths(table: pa.Table) -> list[str]:
    """The columns that say how many tokens were scored."""
    return [name for name in _LENGTHS.values() if name in table.column_names]


def _groups(tokens: Tokens, sides: Sequence[str], kept: np.ndarray) -> Groups:
    completions = np.stack([tokens.completions[side][kept] for side in sides], axis=1)
    return Groups(tokens.ids, tokens.prompt[kept], completions)


def _array(column: pa.ChunkedArray) -> np.ndarray | Ragged:
    """A column in memory: numbers as they are, equal names as one object, lists end to end."""
    kind = pa.types
    if kind.is_list(column.type) or kind.is_large_list(column.type):
        lists = column.combine_chunks()
        ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
        return Ragged(lists.flatten().to_numpy(zero_copy_only=False), np.concatenate(([0], ends)))
    if not (kind.is_integer(column.type) or kind.is_floating(column.type) or kind.is_boolean(column.type)):
        coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
        names = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
        return names[pc.fill_null(coded.indices, len(names) - 1).to_numpy()]
    return column.to_numpy()


def _codes(weights: np.ndarray, encoded: Sequence[Tokens]) -> np.ndarray:
    """Why each row is left out, (n,); None where it is not."""
    codes = np.full(len(weights), None, object)
    for tokens in encoded:
        for refused in tokens.refused.values():
            codes = np.where(codes == None, refused, codes)  # noqa: E711
    codes[(weights == 0) & (codes == None)] = "weight.zero"  # noqa: E711
    if "rejected" in (sides := encoded[0].completions):
        codes[(sides["chosen"] == sides["rejected"]) & (codes == None)] = "pair.equal_after_truncation"  # noqa: E711
    return codes


def _partners(table: pa.Table) -> pa.ChunkedArray | None:
    """The text of each row's mismatched completion, which stands in the same split; None where there are no texts."""
    if (texts := _text(table, "completion")) is None:
        return None
    at = pc.index_in(table["mismatched_id"], value_set=table["completion_id"])
    if lost := at.null_count:
        first = table["mismatched_id"].filter(pc.is_null(at))[0]
        raise ValueError(
            f"{lost} mismatched partners are not in this split, the first is {first}: build the snapshot again"
        )
    return texts.take(at)


def _require(rows: pa.Table, needed: Sequence[str], rule: str) -> None:
    """ValueError where a needed column is empty in some row; a row's id is its first column."""
    for name in needed:
        if not (empty := rows[name].null_count):
            continue
        cure = _CURES.get(name, "add `score:` to the pipeline and build it again")
        first = rows.column(0).filter(pc.is_null(rows[name]))[0]
        raise ValueError(f"{rule} needs {name}, which is empty in {empty} of {len(rows)} rows (first {first}): {cure}")


def _check_lengths(rows: pa.Table, lengths: dict[str, np.ndarray]) -> None:
    """ValueError where a completion has other tokens than when its reference was scored, told by their number."""
    for side, now in lengths.items():
        if _LENGTHS[side] not in rows.column_names:
            continue
        before = pc.fill_null(rows[_LENGTHS[side]].cast(pa.int64()), -1).to_numpy()
        if len(differing := np.flatnonzero((before >= 0) & (before != now))):
            i = int(differing[0])
            raise ValueError(
                f"{len(differing)} rows have other tokens than when their references were scored (first "
                f"{rows.column(0)[i]}: {side} had {before[i]} tokens, has {now[i]}): the policy's tokenizer or "
                "template is not the reference's; score with the policy's"
            )


def _check_token_values(rows: pa.Table, filled: Sequence[str], lengths: dict[str, np.ndarray]) -> None:
    """ValueError where stored token values are not one a token."""
    for name in filled:
        if counted_by(name) == "row":
            continue
        now = lengths[{"chosen_token": "chosen", "rejected_token": "rejected"}.get(counted_by(name), "completion")]
        values = pc.list_value_length(rows[name]).to_numpy()
        if len(differing := np.flatnonzero(values != now)):
            i = int(differing[0])
            raise ValueError(
                f"{rows.column(0)[i]} has {values[i]} values in {name}, and {now[i]} tokens: they were measured with "
                "another tokenizer, template or length; score the snapshot again"
            )


def _refuse_soft(preferences: np.ndarray, ids: pa.ChunkedArray, rule: str) -> None:
    if len(soft := np.flatnonzero(preferences != 1)):
        raise ValueError(
            f"{rule} takes every preference as certain, but {len(soft)} rows are soft (first {ids[int(soft[0])]}): "
            "drop ties and split votes when pairing, or take a rule that honours preference, such as dpo"
        )
