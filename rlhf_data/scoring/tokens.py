"""Token ids of a snapshot's rows, kept beside it, so that no second run tokenises.

    <versions>/tokens/<snapshot>/<encoding>/<split>.json                what it is of, and the digest of each part
    <versions>/tokens/<snapshot>/<encoding>/<split>-00000.parquet …     the ids of some thousand rows

A snapshot's own folder never changes, so the ids stand next to it; where that cannot be written, or the snapshot lies
alone, they stand under the cache. `<encoding>` is a digest of all that decides the ids: the rows, the tokenizer's
files, the template's text, the lengths, and the version of `encode`. A part holds each distinct sequence once, end to
end, and says by number which one is a row's prompt and which are its completions. Parts appear whole or not at all, so
a kill costs the one in hand; one that is damaged is made again.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128_hexdigest

from rlhf_data import files
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.identity import template_text, tokenizer_hash
from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.recipe import ENCODING

_PART_ROWS = 16_384  # rows whose texts and ids are in memory at a time; what a kill costs


@dataclass(frozen=True)
class Ragged(Sequence):
    """Arrays of different lengths end to end; one of them is a view, which copies nothing.

    >>> Ragged(np.array([7, 8, 9]), np.array([0, 1, 3]))[1].tolist()
    [8, 9]
    """

    values: np.ndarray
    offsets: np.ndarray  # (n + 1,): where each begins, and the end

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if i < 0:
            i += len(self)
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(n,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Groups(Sequence):
    """A row's prompt with its completions, made when it is asked for: views of the split's token ids.

    `prompt` (n,) and `completions` (n, k) are numbers of sequences in `ids`.
    """

    ids: Ragged
    prompt: np.ndarray
    completions: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return Group(self.ids[self.prompt[i]], [self.ids[k] for k in self.completions[i].tolist()])


@dataclass(frozen=True)
class Tokens:
    """Token ids of n rows; each of the arrays is (n,).

    Attributes:
        ids: the distinct sequences of each part.
        prompt: the number in `ids` of each row's prompt; -1 where no side of the row could be encoded.
        completions: that of each side's completion, by side; -1 where it was refused. Within a row, equal completions
            have equal numbers.
        truncated: whether prompt or completion lost tokens, by side.
        refused: a code of `encode` or None, by side.
    """

    ids: Ragged
    prompt: np.ndarray
    completions: dict[str, np.ndarray]
    truncated: dict[str, np.ndarray]
    refused: dict[str, np.ndarray]

    def lengths(self, side: str) -> np.ndarray:
        """Tokens of each row's completion, (n,); 0 where it was refused."""
        at = self.completions[side]
        return np.where(at < 0, 0, np.append(self.ids.lengths, 0)[at])


def folder(
    snapshot: Path,
    manifest: dict[str, Any],
    split: str,
    *,
    model: dict[str, Any],
    template: str,
    max_length: int,
    max_prompt_length: int,
    condition: Mapping[str, Any] | None = None,
    cache: Path,
) -> Path:
    """Where the token ids of a split stand.

    Args:
        snapshot: its folder.
        manifest: what it says of itself.
        split: whose rows.
        model: reference of the model whose tokenizer it is.
        template: see `encode`, and so are the lengths.
        max_length: see `encode`.
        max_prompt_length: most tokens of a prompt.
        condition: what classes are written into the prompts, see `condition`.
        cache: folder for digests, and for token ids that cannot stand beside their snapshot.
    """
    data = sorted((snapshot / "data").glob(f"{split}-*.parquet"))
    decides = {
        "rows": manifest.get("content_hash") or files.digests(data, cache / "digests.json"),
        "tokenizer_hash": tokenizer_hash(model, cache),
        "template": template_text(template),
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "code": ENCODING,
        **({"condition": dict(condition)} if condition else {}),
    }
    beside = snapshot.resolve().parent
    published = (beside / "refs").is_dir() and os.access(beside, os.W_OK)
    name = xxh3_128_hexdigest(json.dumps(decides, sort_keys=True).encode())
    return (beside if published else cache) / "tokens" / manifest.get("id", snapshot.name) / name


def complete(stored: Path) -> bool:
    """Whether the ids of all rows are stored and whole, so that nobody needs the rows' texts."""
    told = files.read_json(stored.with_name(f"{stored.name}.json"))
    if not isinstance(told, dict) or told.get("part_rows") != _PART_ROWS:
        return False
    names = [_part(stored, number).name for number in range(-(-told["rows"] // _PART_ROWS))]
    try:
        return all(files.digest(stored.with_name(name)) == told["parts"].get(name) for name in names)
    except OSError:
        return False


def read_tokens(
    columns: Mapping[str, pa.ChunkedArray | None],
    rows: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    max_length: int,
    max_prompt_length: int | None,
    stored: Path | None = None,
) -> Tokens:
    """Token ids of all rows: read where they are stored, else made, and stored there.

    Args:
        columns: `prompt` (messages) and the texts of each side, by the side's name, all (n,); None in the place of
            each where all ids are stored: see `complete`.
        rows: n.
        tokenizer: of the model that will read them.
        template: see `encode`, and so are the lengths.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        stored: path without its ending, <folder>/<split>, of the files; None keeps nothing.
    """
    sides = [name for name in columns if name != "prompt"]
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    told = _told(stored, sides, rows)
    width = pa.uint16() if len(tokenizer) <= 1 << 16 else pa.uint32()
    parts = []
    for number, start in enumerate(range(0, rows, _PART_ROWS)):
        path = None if stored is None else _part(stored, number)
        part = None if path is None else _stored(path, told)
        if part is None:
            texts = {name: _texts(column, path, start) for name, column in columns.items()}
            part = _encoded(tokenizer, texts.pop("prompt"), texts, width, template, lengths)
            if path is not None:
                _store(path, part, told)
        parts.append(part)
    return _joined(parts, sides, width)


def _part(stored: Path, number: int) -> Path:
    return stored.with_name(f"{stored.name}-{number:05d}.parquet")


def _texts(column: pa.ChunkedArray | None, path: Path | None, start: int) -> list[Any]:
    if column is None:
        raise ValueError(f"{path} was removed or damaged while it was read: start again, and it is made anew")
    return column.slice(start, _PART_ROWS).to_pylist()


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Any],
    texts: dict[str, list[str]],
    width: pa.DataType,
    template: str,
    lengths: dict[str, int | None],
) -> pa.Table:
    """A part: one row, whose lists are its flat arrays."""
    asked: dict[tuple, int] = {}  # each completion of a prompt once, however many pairs it stands in
    at = {side: np.empty(len(prompts), np.int64) for side in texts}
    for i, messages in enumerate(prompts):
        key = tuple(tuple((name, text) for name, text in one.items() if text is not None) for one in messages)
        for side, column in texts.items():
            at[side][i] = asked.setdefault((key, column[i]), len(asked))
    messages = [[dict(one) for one in key] for key, _ in asked]
    made = encode(tokenizer, messages, [text for _, text in asked], template=template, **lengths)  # type: ignore[arg-type]
    pool: dict[bytes, int] = {}
    kind = np.dtype(width.to_pandas_dtype())

    def numbered(sequences: Sequence[Sequence[int]]) -> np.ndarray:
        keys = (np.asarray(ids, kind).tobytes() if ids else None for ids in sequences)
        return np.fromiter((-1 if key is None else pool.setdefault(key, len(pool)) for key in keys), np.int32)

    prompt_of, completion_of = numbered(made.prompt_ids), numbered(made.completion_ids)
    prompt = np.full(len(prompts), -1, np.int32)
    for rows in at.values():
        prompt = np.where(prompt < 0, prompt_of[rows], prompt)
    truncated, refused = np.asarray(made.truncated, bool), np.asarray(made.refused, object)
    values = np.frombuffer(b"".join(pool), kind)
    flat: dict[str, tuple[Any, pa.DataType]] = {
        "tokens": (values, width),
        "lengths": (np.fromiter((len(key) // kind.itemsize for key in pool), np.uint32, len(pool)), pa.uint32()),
        "prompt": (prompt, pa.int32()),
    }
    for side, rows in at.items():
        flat[side] = completion_of[rows], pa.int32()
        flat[f"{side}_truncated"] = truncated[rows], pa.bool_()
        flat[f"{side}_refused"] = refused[rows], pa.string()
    return pa.table({name: _one_list(pa.array(array, kind)) for name, (array, kind) in flat.items()})


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _told(stored: Path | None, sides: list[str], rows: int) -> dict[str, Any]:
    """What the manifest of stored ids says; an empty one where there is none, or where it is of other rows."""
    fresh = {"sides": sides, "rows": rows, "part_rows": _PART_ROWS, "parts": {}}
    told = None if stored is None else files.read_json(stored.with_name(f"{stored.name}.json"))
    alike = isinstance(told, dict) and {**told, "parts": {}} == fresh
    return told if alike and told is not None else fresh


def _stored(path: Path, told: dict[str, Any]) -> pa.Table | None:
    """A part; None where it is not there, or not what was written."""
    try:
        if files.digest(path) != told["parts"].get(path.name):
            return None
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException):
        return None


def _store(path: Path, part: pa.Table, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as temporary:
        pq.write_table(
            part,
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding={"tokens.list.element": "BYTE_STREAM_SPLIT"},  # a third less than plain, and faster read
        )
        told["parts"][path.name] = files.digest(temporary)
    name = path.name.rpartition("-")[0]
    files.write_text(path.with_name(f"{name}.json"), json.dumps(told, indent=1))


def _joined(parts: Sequence[pa.Table], sides: Sequence[str], width: pa.DataType) -> Tokens:
    kind = np.dtype(width.to_pandas_dtype())
    lengths = _flat(parts, "lengths", np.dtype(np.int64))
    firsts = np.cumsum([0, *(len(_values(part, "lengths")) for part in parts)])[:-1]

    def numbers(name: str) -> np.ndarray:
        """Numbers of sequences, counted over all parts."""
        shifted = [_values(part, name).to_numpy() for part in parts]
        shifted = [np.where(at < 0, -1, at + first) for at, first in zip(shifted, firsts, strict=True)]
        return np.concatenate(shifted) if shifted else np.empty(0, np.int64)

    return Tokens(
        ids=Ragged(_flat(parts, "tokens", kind), np.concatenate(([0], np.cumsum(lengths)))),
        prompt=numbers("prompt"),
        completions={side: numbers(side) for side in sides},
        truncated={side: _flat(parts, f"{side}_truncated", np.dtype(bool)) for side in sides},
        refused={side: _flat(parts, f"{side}_refused", np.dtype(object)) for side in sides},
    )


def _flat(parts: Sequence[pa.Table], name: str, kind: np.dtype) -> np.ndarray:
    arrays = [_values(part, name).to_numpy(zero_copy_only=False) for part in parts]
    return np.concatenate([array.astype(kind, copy=False) for array in arrays]) if arrays else np.empty(0, kind)


def _values(part: pa.Table, name: str) -> pa.Array:
    return part[name].combine_chunks().flatten()
