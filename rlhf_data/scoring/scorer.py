"""Reference log-probs of completions: what the store has is looked up, what it lacks runs through the model once."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from rlhf_data.files import whole_file
from rlhf_data.scoring import MEASURES, identity, models, recipe, vllm_backend
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.forwards import forwards
from rlhf_data.scoring.logprobs import (
    compile_layers,
    default_budget,
    layout_of,
    token_logps,
    token_logps_and_squares,
)
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.packs import Group, Layout, plan, size
from rlhf_data.scoring.progress import bar, say
from rlhf_data.scoring.requests import request_ids
from rlhf_data.scoring.segments import Item, grouped, segments
from rlhf_data.scoring.shards import write_parquet
from rlhf_data.scoring.store import Index, ScoreStore

_RESULT_ROWS = 65_536  # completions whose token values are in memory at a time


_Measured = Sequence[list[list[Tensor]]]  # log-probs, and log Σp² where it is kept


class _Runner(NamedTuple):
    measure: Callable[[Sequence[Group]], Iterator[tuple[list[int], _Measured]]]  # of each forward, and of which groups
    layout: Layout
    token_budget: int


class _Keep(NamedTuple):
    """What is stored beside the sums: each token's log-prob, the mean log Σp²."""

    tokens: bool
    squares: bool


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
    token_logps: bool = True,
    squares: bool = False,
    give: Sequence[str] = (),
    shard_rows: int = 1024,
    claims: Path | None = None,
    backend: str = "torch",
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Score every completion of `requests` with `model`, reusing all that the store holds.

    Args:
        requests: Parquet with completion_id, prompt (list of {role, content}), completion; ids may repeat.
        out: Parquet to write: completion_id (distinct, in the order of first request), key, logps (nats, summed,
            float64), n_tokens, truncated, refused (a code of `encode`, and then no logps), and what `give` names.
        store: folder of the score store.
        model: reference {"path", "gguf_file"?, "revision"?, "adapter"?}.
        template: see `encode`.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        device: see `models.load`.
        token_budget: most tokens in all forwards of a time; None takes `default_budget`.
        token_logps: store each token's log-prob too, so that rules over tokens find it later; rows of which only the
            sum is stored are scored again.
        squares: store the mean over tokens of log Σp² over the vocabulary too; rows without it are scored again.
        give: further columns of `out`: token_logps (List(float32), nats), mean_log_p2 (float64).
        shard_rows: completions of a shard: a kill loses at most these.
        claims: a folder that several processes share, each of which then scores its part and writes no `out`: see
            `workers`.
        backend: "torch", the engine of `logprobs`, or "vllm", whose kernels round otherwise: a recipe of its own.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr shows tokens per second.

    Returns:
        The recipe, for a manifest: model and its hash, dtypes, template, lengths, device, versions, and `counts` of
        completions {requested, distinct, reused, scored, refused, truncated} and of the `tokens` run now.

    Raises:
        ValueError: a wrong argument or file, a model that does not fit, or a log-prob that is no number.
    """
    keep = _Keep(token_logps or "token_logps" in give, squares or "mean_log_p2" in give)
    if unknown := [name for name in give if name not in MEASURES]:
        raise ValueError(f"a score has no column {', '.join(unknown)}; it has {', '.join(MEASURES)}")
    device = models.device_name(device)
    numeric = recipe.numeric(model, models.dtype_name(dtype, device), cache, backend=backend)
    encoding = recipe.encoding(model, template, max_length, max_prompt_length, cache)
    scores, index = ScoreStore(store, numeric), Index(store, encoding)

    asked = request_ids(requests)
    distinct = asked.unique()
    found = index.find(distinct)
    missing = found.filter(pc.and_(pc.is_null(found["refused"]), pc.invert(scores.has(found["key"], **keep._asdict()))))
    run = {"scored": 0, "tokens": 0}
    if missing.num_rows:
        tokenizer = models.load_tokenizer(model, cache=cache)

        def load() -> _Runner:
            if backend == "vllm":
                return _by_vllm(model, numeric["dtype"], max_length, token_budget, keep.squares, cache)
            net, _ = models.load(model, dtype=numeric["dtype"], device=device, max_length=max_length, cache=cache)
            return _by_torch(net, token_budget, keep.squares, progress)

        lengths = {"max_length": max_length, "max_prompt_length": encoding["max_prompt_length"]}
        encode_texts = partial(encode, tokenizer, template=template, **lengths)
        parts = segments(requests, missing, encode_texts, claims)
        with bar("score", "completions", total=missing.num_rows, shown=progress) as shown:
            run = _score_missing(parts, load, scores, index, keep, shard_rows, shown)
        found = index.find(distinct)

    if claims is None:  # one of several knows its own part only
        _write_result(found, scores, [name for name in MEASURES if name in give], out)
    refused = found.num_rows - found["refused"].null_count
    return {
        "model": model,
        **{name: numeric[name] for name in ("model_hash", "dtype", "head_dtype", "backend") if name in numeric},
        "tokenizer_hash": encoding["tokenizer_hash"],
        "template": template,
        "template_hash": identity.template_hash(model, template, cache),
        "max_length": max_length,
        "max_prompt_length": encoding["max_prompt_length"],
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "counts": {
            "requested": len(asked),
            "distinct": found.num_rows,
            "reused": found.num_rows - refused - run["scored"],
            "refused": refused,
            "truncated": pc.sum(found["truncated"]).as_py() or 0,
            **run,
        },
    }


def _score_missing(
    parts: Iterator[tuple[pa.Table, list[Item]]],
    load: Callable[[], _Runner],
    scores: ScoreStore,
    index: Index,
    keep: _Keep,
    shard_rows: int,
    shown: tqdm,
) -> dict[str, int]:
    """Index each segment and run what the store lacks of it; the model is loaded when the first row asks for it."""
    done: set[str] = set()
    runner = None
    started, tokens = time.monotonic(), 0
    keys: list[str] = []
    values: list[np.ndarray] = []
    for index_rows, items in parts:
        index.add(index_rows)
        # Asked anew for each segment: another scorer may have come here first.
        known = scores.has(pa.array([item.key for item in items], pa.string()), **keep._asdict()).to_pylist()
        unseen = {item.key: item for item, seen in zip(items, known, strict=True) if not seen and item.key not in done}
        done.update(unseen)
        shown.update(len(items) - len(unseen))
        if unseen and runner is None:
            runner, started = load(), time.monotonic()
        for ran_keys, ran_values, n_tokens in _run(runner, list(unseen.values())) if runner else ():
            keys += ran_keys
            values += ran_values
            tokens += n_tokens
            shown.update(len(ran_keys))
            shown.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            if len(keys) >= shard_rows:
                _add(scores, keys, values, keep)
                keys, values = [], []
        # Before the next segment is asked for: that says that this one is done.
        _add(scores, keys, values, keep)
        keys, values = [], []
    return {"scored": len(done), "tokens": tokens}


def _add(scores: ScoreStore, keys: list[str], values: list[np.ndarray], keep: _Keep) -> None:
    """Write one shard; `values` has, for each key, (n_tokens, 1 or 2): log-probs, and log Σp² where it is kept."""
    means = [float(one[:, 1].mean(dtype=np.float64)) for one in values] if keep.squares else None
    scores.add(keys, [np.ascontiguousarray(one[:, 0]) for one in values], means, tokens=keep.tokens)


def _run(runner: _Runner, items: Sequence[Item]) -> Iterator[tuple[list[str], list[np.ndarray], int]]:
    """(keys, values of their tokens as `_add` takes them, tokens run) of each forward, longest groups first."""
    groups = grouped(items, runner.token_budget, partial(size, layout=runner.layout))
    asked = [group for group, _ in groups]
    for picked, measured in runner.measure(asked):
        flat = [[one for group in measure for one in group] for measure in measured]
        values = torch.stack([torch.cat(one) for one in flat], dim=1).float().cpu().numpy()
        ends = np.cumsum([len(one) for one in flat[0]])[:-1]
        yield (
            [key for i in picked for key in groups[i][1]],
            np.split(values, ends),
            sum(size(asked[i], runner.layout) for i in picked),
        )


def _by_torch(model: PreTrainedModel, token_budget: int | None, squares: bool, progress: bool) -> _Runner:
    budget = token_budget or default_budget(model)
    say(in_words(preflight(model, budget)), shown=progress)
    layout = layout_of(model)
    if model.device.type == "cuda":
        compile_layers(model, layout)

    def measure(groups: Sequence[Group]) -> Iterator[tuple[list[int], _Measured]]:
        def run(picked: list[int]) -> _Measured:
            asked = [groups[i] for i in picked]
            return token_logps_and_squares(model, asked, layout) if squares else (token_logps(model, asked, layout),)

        return forwards(model, groups, layout, budget, run)

    return _Runner(measure, layout, budget)


def _by_vllm(
    reference: dict[str, Any], dtype: str, max_length: int, token_budget: int | None, squares: bool, cache: Path
) -> _Runner:
    """The same by vLLM, which finds its devices itself; `token_budget` is of what it is asked at once."""
    if squares:
        raise ValueError("vLLM tells nothing of Σp²: score it with the default backend")
    if identity.parts(reference)[1] is not None:
        raise ValueError("the vllm backend takes a whole model: merge the adapter first")
    llm = vllm_backend.load(str(models.plain_folder(reference, cache)), dtype=dtype, max_length=max_length)
    budget = token_budget or 1 << 16

    def measure(groups: Sequence[Group]) -> Iterator[tuple[list[int], _Measured]]:
        for picked in plan(groups, budget, "packed"):
            yield picked, (vllm_backend.token_logps(llm, [groups[i] for i in picked]),)

    return _Runner(measure, "packed", budget)


def _write_result(found: pa.Table, scores: ScoreStore, give: Sequence[str], out: Path) -> None:
    """What was asked for, in the order of the question; token values for a bounded number of rows at a time."""
    if not give:
        write_parquet(_result(found, scores, give), out)
        return
    with whole_file(out) as beside, ExitStack() as stack:
        writer = None
        for start in range(0, max(1, found.num_rows), _RESULT_ROWS):
            part = _result(found.slice(start, _RESULT_ROWS), scores, give)
            if writer is None:
                options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
                writer = stack.enter_context(pq.ParquetWriter(beside, part.schema, **options))
            writer.write_table(part)


def _result(found: pa.Table, scores: ScoreStore, give: Sequence[str]) -> pa.Table:
    values = scores.find(found["key"], ["logps", *give])
    for name in ("logps", *give):
        lacking = pc.and_(pc.is_null(found["refused"]), pc.is_null(values[name]))
        if lost := pc.sum(lacking).as_py():
            raise ValueError(
                f"{lost} completions have no {name} though they were scored (first "
                f"{found['completion_id'].filter(lacking)[0]}): the index names other tokens than their text gives "
                "now; remove the folder `index` of the score store, and score again: no score is lost"
            )
    named = {name: found[name] for name in ("completion_id", "key", "n_tokens", "truncated", "refused")}
    named |= {name: values[name] for name in ("logps", *give)}
    return pa.table(named).select(["completion_id", "key", "logps", "n_tokens", "truncated", "refused", *give])
