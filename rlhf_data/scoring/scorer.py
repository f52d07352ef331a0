"""Reference log-probs of completions: what the store has is looked up, what it lacks runs through the model once."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from xxhash import xxh3_128_hexdigest

from rlhf_data.scoring import identity, models
from rlhf_data.scoring.encode import ENCODING, encode, prompt_limit
from rlhf_data.scoring.logprobs import NUMERICS, compile_layers, default_budget, layout_of, token_logps
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.packs import Group, Layout, plan, size
from rlhf_data.scoring.progress import bar, say
from rlhf_data.scoring.store import INDEX, Index, ScoreStore, ids_key, lookup, write_parquet
from rlhf_data.scoring.workers import parts_of, taken

_SEGMENT_ROWS = 16_384  # completions whose token ids are in memory at a time
_REQUEST = ("completion_id", "prompt", "completion")


class _Item(NamedTuple):
    """One completion that may have to run."""

    key: str
    prompt_ids: list[int]
    completion_ids: list[int]


class _Runner(NamedTuple):
    model: PreTrainedModel
    layout: Layout
    token_budget: int


def score(
    requests: Path,
    out: Path,
    *,
    store: Path,
    model: dict[str, Any],
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    token_budget: int | None = None,
    shard_rows: int = 1024,
    claims: Path | None = None,
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Score every completion of `requests` with `model`, reusing all that the store holds.

    Args:
        requests: Parquet with completion_id, prompt (list of {role, content}), completion; ids may repeat.
        out: Parquet to write: completion_id (distinct, in the order of first request), key, logps (nats, summed,
            float64), n_tokens, truncated, refused (a code of `encode`, and then no logps).
        store: folder of the score store.
        model: reference {"path", "gguf_file"?, "revision"?}.
        template: see `encode`.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        device: see `models.load`.
        token_budget: most tokens of a forward; None takes `default_budget`.
        shard_rows: completions of a shard: a kill loses at most these.
        claims: a folder that several processes share, each of which then scores its part: see `workers`.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr shows tokens per second.

    Returns:
        The recipe, for a manifest: model and its hash, dtypes, template, lengths, device, versions, and `counts` of
        completions {requested, distinct, reused, scored, refused, truncated} and of the `tokens` run now.

    Raises:
        ValueError: a wrong argument or file, a model that does not fit, or a log-prob that is no number.
    """
    limit = prompt_limit(max_length, max_prompt_length)
    device = models.device_name(device)
    numeric = {
        "model_hash": identity.content_hash(model, cache),
        "dtype": models.dtype_name(dtype, device),
        "head_dtype": "float32",
    }
    tokenizer_digest = identity.tokenizer_hash(model, cache)
    lengths = {"max_length": max_length, "max_prompt_length": limit}
    scores = ScoreStore(store, numeric | {"code": NUMERICS})
    index = Index(
        store,
        {"tokenizer_hash": tokenizer_digest, "template": identity.template_text(template), "code": ENCODING} | lengths,
    )

    asked = _request_ids(requests)
    found = index.find(asked.unique())
    missing = found.filter(pc.and_(pc.is_null(found["refused"]), pc.is_null(lookup(scores.totals(), found["key"]))))
    run = {"scored": 0, "tokens": 0}
    if missing.num_rows:
        tokenizer = models.load_tokenizer(model, cache=cache)
        load = partial(_runner, model, numeric["dtype"], device, max_length, token_budget, cache, progress)
        encode_texts = partial(encode, tokenizer, template=template, max_length=max_length, max_prompt_length=limit)
        segments = _segments(requests, missing, encode_texts, claims)
        with bar("score", "completions", total=missing.num_rows, shown=progress) as shown:
            run = _score_missing(segments, load, scores, index, shard_rows, shown)

    table = _result(index.find(asked.unique()), scores.totals())
    write_parquet(table, out)
    refused = table.num_rows - table["refused"].null_count
    return {
        "model": model,
        **numeric,
        "tokenizer_hash": tokenizer_digest,
        "template": template,
        "template_hash": xxh3_128_hexdigest(f"{tokenizer_digest}:{identity.template_text(template)}".encode()),
        **lengths,
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "counts": {
            "requested": len(asked),
            "distinct": table.num_rows,
            "reused": table.num_rows - refused - run["scored"],
            "refused": refused,
            "truncated": pc.sum(table["truncated"]).as_py() or 0,
            **run,
        },
    }


def _score_missing(
    segments: Iterator[tuple[pa.Table, list[_Item]]],
    load: Callable[[], _Runner],
    scores: ScoreStore,
    index: Index,
    shard_rows: int,
    shown: tqdm,
) -> dict[str, int]:
    """Index each segment and run what the store lacks of it; the model is loaded when the first row asks for it."""
    totals, done = scores.totals(), set()
    runner = None
    started, tokens = time.monotonic(), 0
    keys: list[str] = []
    logps: list[np.ndarray] = []
    for index_rows, items in segments:
        index.add(index_rows)
        known = lookup(totals, pa.array([item.key for item in items], pa.string())).is_valid().to_pylist()
        unseen = {item.key: item for item, seen in zip(items, known, strict=True) if not seen and item.key not in done}
        done.update(unseen)
        shown.update(len(items) - len(unseen))
        if unseen and runner is None:
            runner, started = load(), time.monotonic()
        for ran_keys, ran_logps, n_tokens in _run(runner, list(unseen.values())) if runner else ():
            keys += ran_keys
            logps += ran_logps
            tokens += n_tokens
            shown.update(len(ran_keys))
            shown.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            if len(keys) >= shard_rows:
                scores.add(keys, logps)
                keys, logps = [], []
        # Before the next segment is asked for: that says that this one is done.
        scores.add(keys, logps)
        keys, logps = [], []
    return {"scored": len(done), "tokens": tokens}


def _run(runner: _Runner, items: Sequence[_Item]) -> Iterator[tuple[list[str], list[np.ndarray], int]]:
    """(keys, token log-probs, tokens run) of each forward, longest groups first."""
    groups = _groups(items, runner.token_budget, runner.layout)
    for picked in plan([group for group, _ in groups], runner.token_budget, runner.layout):
        batch = [groups[i] for i in picked]
        with torch.inference_mode():
            logps = token_logps(runner.model, [group for group, _ in batch], runner.layout)
        flat = [one for group in logps for one in group]
        values = torch.cat(flat).cpu().numpy()
        ends = np.cumsum([len(one) for one in flat])[:-1]
        yield (
            [key for _, keys in batch for key in keys],
            np.split(values, ends),
            sum(size(group, runner.layout) for group, _ in batch),
        )


def _groups(items: Sequence[_Item], token_budget: int, layout: Layout) -> list[tuple[Group, list[str]]]:
    """Completions of one prompt together, with their keys, in as few groups as fit the budget."""
    groups: list[tuple[Group, list[str]]] = []
    for _, same in groupby(items, key=lambda item: id(item.prompt_ids)):  # rows of a prompt share its list
        group = None
        for item in same:
            grown = None if group is None else Group(item.prompt_ids, [*group.completions, item.completion_ids])
            if group is None or grown is None or size(grown, layout) > token_budget:
                group = Group(item.prompt_ids, [item.completion_ids])
                groups.append((group, [item.key]))
            else:
                group = grown
                groups[-1] = (group, [*groups[-1][1], item.key])
    return groups


def _runner(
    reference: dict[str, Any],
    dtype: str,
    device: str,
    max_length: int,
    token_budget: int | None,
    cache: Path,
    progress: bool,
) -> _Runner:
    model, _ = models.load(reference, dtype=dtype, device=device, max_length=max_length, cache=cache)
    budget = token_budget or default_budget(model)
    say(in_words(preflight(model, budget)), shown=progress)
    layout = layout_of(model)
    if model.device.type == "cuda":
        compile_layers(model, layout)
    return _Runner(model, layout, budget)


def _segments(
    requests: Path, missing: pa.Table, encode_texts: Callable[..., Any], claims: Path | None
) -> Iterator[tuple[pa.Table, list[_Item]]]:
    """(rows that the index lacks, items that may have to run) of a bounded number of completions at a time."""
    table = pq.read_table(requests, columns=list(_REQUEST))
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
            schema=INDEX,
        )
        items = [
            _Item(key, prompt, completion)
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
            if len(segment) >= _SEGMENT_ROWS:
                yield segment
                segment = []
            segment += same
        if segment:
            yield segment


def _request_ids(requests: Path) -> pa.Array:
    names = pq.read_schema(requests).names
    if lacking := [name for name in _REQUEST if name not in names]:
        raise ValueError(f"{requests} has no column {', '.join(lacking)}: a request is {', '.join(_REQUEST)}")
    table = pq.read_table(requests, columns=["completion_id", "completion"])
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{requests} has {table[name].null_count} rows without {name}")
    return table["completion_id"].cast(pa.string()).combine_chunks()


def _result(found: pa.Table, totals: pa.Table) -> pa.Table:
    """What was asked for, in the order of the question."""
    logps = totals["logps"].take(lookup(totals, found["key"]))
    return pa.table(
        {name: found[name] for name in ("completion_id", "key")}
        | {"logps": logps}
        | {name: found[name] for name in ("n_tokens", "truncated", "refused")}
    )
