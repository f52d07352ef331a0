"""What a store lacks of a request, as token ids: some completions at a time, those of a prompt together."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_128_hexdigest

from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.requests import COLUMNS
from rlhf_data.scoring.store import INDEX, ids_key
from rlhf_data.scoring.workers import parts_of, taken

_ROWS = 16_384  # completions whose token ids are in memory at a time


class Item(NamedTuple):
    """One completion that may have to run."""

    key: str
    prompt_ids: list[int]
    completion_ids: list[int]


def segments(
    requests: Path, missing: pa.Table, encode_texts: Callable[..., Any], claims: Path | None = None
) -> Iterator[tuple[pa.Table, list[Item]]]:
    """(rows that the index lacks, items that may have to run) of a bounded number of completions at a time."""
    table = pq.read_table(requests, columns=list(COLUMNS))
    at = pc.index_in(missing["completion_id"], value_set=table["completion_id"])
    fresh = pc.is_null(missing["key"])
    rows = table.take(at).append_column("fresh", fresh)
    for picked in _by_prompt(rows, claims, table.num_rows):
        part = rows.take(pa.array(picked, pa.int64())).to_pydict()
        encoded = encode_texts(part["prompt"], part["completion"])
        keys = [
            None if refused else ids_key(*ids)
            for *ids, refused in zip(encoded.prompt_ids, encoded.completion_ids, encoded.refused, strict=True)
        ]
        index_rows = pa.table(
            {
                "completion_id": part["completion_id"],
                "key": keys,
                "n_tokens": [len(ids) or None for ids in encoded.completion_ids],
                "truncated": encoded.truncated,
                "refused": encoded.refused,
            },
            schema=INDEX.schema,
        )
        items = [
            Item(key, prompt, completion)
            for key, prompt, completion in zip(keys, encoded.prompt_ids, encoded.completion_ids, strict=True)
            if key is not None
        ]
        yield index_rows.filter(pa.array(part["fresh"])), items


def _by_prompt(rows: pa.Table, claims: Path | None, n_requested: int) -> Iterator[list[int]]:
    """Row numbers, rows of a prompt together, prompts with the longest row first, in segments of whole prompts.

    With `claims`, those of one part after another that this process takes: which part a prompt is in, its text and the
    size of the request alone say, so it does not matter what the others have done since.
    """
    digests = []
    for batch in rows.select(["prompt"]).to_batches(max_chunksize=4096):
        digests += [xxh3_128_hexdigest(repr(prompt).encode()) for prompt in batch["prompt"].to_pylist()]
    lengths = pc.utf8_length(rows["completion"]).to_pylist()
    longest: dict[str, int] = {}
    for digest, length in zip(digests, lengths, strict=True):
        longest[digest] = max(longest.get(digest, 0), length)
    order = sorted(range(len(digests)), key=lambda i: (-longest[digests[i]], digests[i], -lengths[i]))
    parts = [order]
    if claims is not None:
        inside: list[list[int]] = [[] for _ in range(parts_of(n_requested))]
        for i in order:
            inside[int(digests[i][:8], 16) % len(inside)].append(i)
        parts = (inside[int(name)] for name in taken(claims, [f"{part:03d}" for part in range(len(inside))]))
    for part in parts:
        segment: list[int] = []
        for _, same in groupby(part, key=lambda i: digests[i]):
            if len(segment) >= _ROWS:
                yield segment
                segment = []
            segment += same
        if segment:
            yield segment


def grouped(items: Sequence[Item], token_budget: int, size: Callable[[Group], int]) -> list[tuple[Group, list[str]]]:
    """Completions of one prompt together, with their keys, in as few groups as fit the budget; `size` counts tokens."""
    groups: list[tuple[Group, list[str]]] = []
    for _, same in groupby(items, key=lambda item: id(item.prompt_ids)):  # rows of a prompt share its list
        group = None
        for item in same:
            grown = None if group is None else Group(item.prompt_ids, [*group.completions, item.completion_ids])
            if group is None or grown is None or size(grown) > token_budget:
                group = Group(item.prompt_ids, [item.completion_ids])
                groups.append((group, [item.key]))
            else:
                group = grown
                groups[-1] = (group, [*groups[-1][1], item.key])
    return groups
