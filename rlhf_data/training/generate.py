"""Sampling completions from a model, by transformers or by vLLM; in a store they are made once and kept by content."""

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from rlhf_data.files import read_json, whole_file, write_text
from rlhf_data.scoring import models
from rlhf_data.scoring.condition import for_inference
from rlhf_data.scoring.encode import Message, encode_prompts, refused_prompts, turn_end
from rlhf_data.scoring.identity import content_hash, end_tokens, parts, template_text, tokenizer_hash
from rlhf_data.scoring.identity import told as told_by
from rlhf_data.scoring.progress import bar

# Part of the key of stored samples: raise it whenever the same model, prompts and settings give other texts.
WRITING = 2
BLOCK = 256  # prompts of a part of the store: a kill loses at most these
ENGINES = ("auto", "transformers", "vllm")
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SAMPLES = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": _MESSAGES,
        "category": pa.string(),
        "sample": pa.int32(),
        "completion": pa.string(),
        "n_tokens": pa.int32(),
        "finished": pa.bool_(),
    }
)


class Written(NamedTuple):
    """One completion.

    Attributes:
        text: without special tokens.
        n_tokens: how many were written, the end token among them.
        finished: the model ended it; otherwise it was cut at `max_new_tokens`.
    """

    text: str
    n_tokens: int
    finished: bool


class Writer(NamedTuple):
    """Something that continues prompts.

    Attributes:
        write: (prompts' token ids, n, temperature, max_new_tokens, seed) → for each prompt the ids of n completions, up
            to and with the end token.
        ends: token ids that end a completion.
        batch_size: completions that are written at once; None leaves that to the engine.
    """

    write: Callable[[list[list[int]], int, float, int, int], list[list[list[int]]]]
    ends: list[int]
    batch_size: int | None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    template: str = "chat",
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 768,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> list[list[str]]:
    """`n` completions of each prompt, as text without special tokens, in the order of `prompts`.

    The same arguments give the same texts: each batch draws from a seed of its own, and the caller's random state is
    left as it was.

    Args:
        model: from `models.load`.
        tokenizer: the model's.
        prompts: messages, one list a prompt.
        template: see `encode`; the one that the model was trained with.
        n: completions a prompt; more than one needs a temperature > 0 to differ.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution, nothing cut off.
        max_new_tokens: most tokens of a completion.
        max_prompt_length: a longer prompt loses its oldest tokens.
        batch_size: sequences of a batch.
        seed: of the sampling.
        progress: whether a bar on stderr counts prompts.

    Raises:
        ValueError: a prompt that `encode` refuses, or a negative temperature.
    """
    sampling: dict[str, Any] = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    sampling |= {"template": template, "max_prompt_length": max_prompt_length, "progress": progress}
    written = write(by_transformers(model, tokenizer, batch_size), tokenizer, prompts, **sampling)
    return [[one.text for one in texts] for texts in written]


def write(
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    template: str = "chat",
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 768,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Written]]:
    """What `generate` does, by any writer, and how each completion ended.

    Raises:
        ValueError: see `generate`.
    """
    if not temperature >= 0 or n < 1:
        raise ValueError(f"temperature is {temperature} and n {n}: they must be >= 0 and >= 1")
    ids = encode_prompts(tokenizer, prompts, template=template, max_prompt_length=max_prompt_length)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # equal lengths together: little padding
    different = n if temperature else 1  # the likeliest token is the same each time
    step = max(1, (writer.batch_size or different * len(ids)) // different)
    written: list[list[Written]] = [[] for _ in ids]
    with bar("generate", "prompts", total=len(order), shown=progress) as shown:
        for start in range(0, len(order), step):
            picked = order[start : start + step]
            drawn = xxh3_64_intdigest(f"generate:{seed}:{start}".encode())
            answers = writer.write([ids[i] for i in picked], different, temperature, max_new_tokens, drawn)
            flat = [completion for completions in answers for completion in completions]
            texts = iter(tokenizer.batch_decode(flat, skip_special_tokens=True))
            for i, completions in zip(picked, answers, strict=True):
                ended = [(one, bool(one) and one[-1] in writer.ends) for one in completions]
                written[i] = [Written(next(texts), len(one), end) for one, end in ended] * (n // different)
            shown.update(len(picked))
    return written


def open_writer(
    reference: dict[str, Any],
    *,
    engine: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    max_length: int | None = None,
    batch_size: int = 16,
    cache: Path,
) -> tuple[Writer, PreTrainedTokenizerBase]:
    """A model, loaded to write.

    Args:
        reference: see `models.load`.
        engine: "transformers", "vllm", or "auto": vLLM where it is installed and a GPU is there.
        dtype: see `models.load`.
        device: see `models.load`.
        max_length: most tokens of prompt and completion.
        batch_size: completions at once, of transformers.
        cache: folder for digests and dequantised models.

    Raises:
        ValueError: no such engine, or vLLM where it is not installed.
    """
    if choose_engine(engine, models.device_name(device), reference) == "vllm":
        tokenizer = models.load_tokenizer(reference, cache=cache)
        precision = models.dtype_name(dtype, models.device_name(device))
        return by_vllm(tokenizer, precision, max_length), tokenizer
    net, tokenizer = models.load(reference, dtype=dtype, device=device, max_length=max_length, cache=cache)
    return by_transformers(net, tokenizer, batch_size), tokenizer


def choose_engine(engine: str, device: str, model: dict[str, Any]) -> str:
    """The engine that "auto" means here, for a model; one with an adapter is for transformers.

    Raises:
        ValueError: no such engine, or one that is not installed or does not know adapters.
    """
    adapted = parts(model)[1] is not None
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}: it must be one of {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise ValueError("engine is vllm, which is not installed: pip install vllm, or take engine transformers")
    if engine == "vllm" and adapted:
        raise ValueError("engine vllm takes a whole model: merge the adapter first, or take engine transformers")
    if engine == "auto":
        return "vllm" if installed and not adapted and device.startswith("cuda") else "transformers"
    return engine


def by_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> Writer:
    """A writer that runs transformers' generate, in batches padded on the left."""
    own = model.generation_config
    ends = _ends(tokenizer, own.eos_token_id if own else None)

    def continued(
        prompts: list[list[int]], n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[list[int]]]:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            rows = _batch(model, prompts, n, temperature, max_new_tokens, ends).tolist()
        cut = [_to_end(row, ends) for row in rows]
        return [cut[k * n : (k + 1) * n] for k in range(len(prompts))]

    return Writer(continued, ends, batch_size)


def by_vllm(tokenizer: PreTrainedTokenizerBase, dtype: str, max_length: int | None = None) -> Writer:
    """A writer that runs vLLM on the folder that a tokenizer of ours came from; it batches by itself.

    Token ids go in and come out, so that a prompt is exactly what `encode` makes of it.
    """
    vllm: Any = importlib.import_module("vllm")
    folder = str(tokenizer.name_or_path)
    engine = vllm.LLM(model=folder, dtype=dtype, max_model_len=max_length, skip_tokenizer_init=True)
    listed = (read_json(Path(folder) / "generation_config.json") or {}).get("eos_token_id")
    ends = _ends(tokenizer, listed)

    def continued(
        prompts: list[list[int]], n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[list[int]]]:
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        settings = [
            vllm.SamplingParams(
                n=n,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                max_tokens=max_new_tokens,
                stop_token_ids=ends,
                seed=(seed + k) % 2**63,  # a request's own, so that its texts do not depend on the others'
                detokenize=False,
            )
            for k in range(len(prompts))
        ]
        outputs = engine.generate(asked, settings, use_tqdm=False)
        return [[_to_end(list(one.token_ids), ends) for one in output.outputs] for output in outputs]

    return Writer(continued, ends, None)


def samples(
    store: Path,
    prompts: Sequence[dict[str, Any]],
    *,
    model: dict[str, Any],
    template: str = "chat",
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 768,
    dtype: str = "auto",
    device: str = "auto",
    engine: str = "auto",
    seed: int = 0,
    block: int = BLOCK,
    share: tuple[int, int] | None = None,
    cache: Path,
    progress: bool = True,
) -> Path:
    """`n` completions of each prompt as a Parquet file of the store, written once for the same model and question.

    Prompts are written block by block; what was killed goes on with the first block that is not there.

    Args:
        store: a folder; the file is in one named by model, prompts and settings, with samples.json beside it:
            the settings, and how many prompts could not be encoded, by code.
        prompts: prompt_id, prompt (messages) and perhaps category, each prompt once.
        model: its reference.
        template: see `generate`, and so are the others.
        n: completions a prompt.
        temperature: of the sampling.
        max_new_tokens: of a completion.
        max_prompt_length: of a prompt.
        dtype: see `models.load`.
        device: see `models.load`.
        engine: see `open_writer`.
        seed: of the sampling.
        block: prompts of a block.
        share: (this process's number from 0, how many there are) where several write at once: each writes every so
            manieth block, and leaves it to a later call without a share to put them together; vLLM, which takes the
            first GPU that it sees, writes in that call.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr counts prompts.

    Returns:
        The file, with the columns of SAMPLES: a row for each completion, in the order of `prompts`.

    Raises:
        ValueError: no prompt, or none that can be encoded; see `open_writer`.
    """
    device = models.device_name(device)
    sampling = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens}
    encoding: dict[str, Any] = {"template": template, "max_prompt_length": max_prompt_length}
    told = {
        "model_hash": content_hash(model, cache),
        "tokenizer_hash": tokenizer_hash(model, cache),
        "ends": end_tokens(model),
        **sampling,
        **encoding,
        "template": template_text(template),
        "dtype": models.dtype_name(dtype, device),
        "engine": choose_engine(engine, device, model),
        "seed": seed,
        "block": block,
        "prompts": xxh3_128_hexdigest(json.dumps([_told_of(row) for row in prompts]).encode()),
        "condition": told_by(model).get("condition"),
        "code": WRITING,
    }
    folder = store / xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())
    done = folder / "samples.parquet"
    if done.is_file() and (folder / "samples.json").is_file():
        os.utime(folder)  # it was used: `gc` spares it for a while
        return done
    if share is not None and told["engine"] == "vllm":
        return done
    tokenizer = models.load_tokenizer(model, cache=cache)
    codes = refused_prompts(tokenizer, for_inference([row["prompt"] for row in prompts], model), **encoding)
    kept = [row for row, code in zip(prompts, codes, strict=True) if code is None]
    refused = dict(Counter(code for code in codes if code))
    if not kept:
        raise ValueError(f"none of the {len(prompts)} prompts can be encoded: {refused or 'there is none'}")
    parts = [folder / f"part-{start // block:05}.parquet" for start in range(0, len(kept), block)]
    number, world = share or (0, 1)
    missing = [k for k, part in enumerate(parts) if k % world == number and not part.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        numeric = {"dtype": dtype, "device": device, "engine": engine, "cache": cache}
        texts = for_inference([row["prompt"] for row in kept], model)  # with the class that a policy was trained on
        longest = max(map(len, encode_prompts(tokenizer, texts, **encoding)))
        writer, _ = open_writer(model, max_length=longest + max_new_tokens, **numeric)
        behind = len(kept) - _rows(missing, kept, block)
        with bar("generate", "prompts", total=len(kept), initial=behind, shown=progress) as shown:
            for k in missing:
                here = kept[k * block : (k + 1) * block]
                drawn = xxh3_64_intdigest(
                    f"block:{seed}:{k}:{told['model_hash']}".encode()
                )  # another model, other draws
                asked = texts[k * block : (k + 1) * block]
                written = write(writer, tokenizer, asked, **sampling, **encoding, seed=drawn, progress=False)
                _publish(_table(here, written), parts[k])
                shown.update(len(here))
    if share is not None:
        return done
    try:
        whole = pa.concat_tables([pq.read_table(part) for part in parts])
    except FileNotFoundError:  # another process wanted the same, and was faster
        if not done.is_file():
            raise
        whole = pq.read_table(done)
    _publish(whole, done)
    write_text(folder / "samples.json", json.dumps({**told, "model": model, "refused": refused}, indent=2))
    for part in parts:
        part.unlink(missing_ok=True)
    return done


def _told_of(prompt: dict[str, Any]) -> Any:
    """What of a prompt stands in its samples: its id, and its category where it has one."""
    return [prompt["prompt_id"], prompt["category"]] if prompt.get("category") else prompt["prompt_id"]


def _rows(blocks: Sequence[int], kept: Sequence[Any], block: int) -> int:
    return sum(len(kept[k * block : (k + 1) * block]) for k in blocks)


def _table(rows: Sequence[dict[str, Any]], written: Sequence[Sequence[Written]]) -> pa.Table:
    lines = [
        {
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            "category": row.get("category"),
            "sample": k,
            "completion": one.text,
            "n_tokens": one.n_tokens,
            "finished": one.finished,
        }
        for row, texts in zip(rows, written, strict=True)
        for k, one in enumerate(texts)
    ]
    return pa.Table.from_pylist(lines, schema=SAMPLES)


def _publish(table: pa.Table, path: Path) -> None:
    with whole_file(path) as beside:
        pq.write_table(table, beside, compression="zstd", compression_level=3)


def _ends(tokenizer: PreTrainedTokenizerBase, listed: Any) -> list[int]:
    """The tokens that end a completion: the tokenizer's, its template's, and those of the model's own settings."""
    own: list[int] = listed if isinstance(listed, list) else [] if listed is None else [listed]
    end = tokenizer.eos_token_id
    assert isinstance(end, int)  # load_tokenizer refuses a tokenizer without one
    return sorted({end, turn_end(tokenizer), *own})


def _to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """`ids` up to the first end token, and with it: what follows is padding."""
    return ids[: next((k + 1 for k, token in enumerate(ids) if token in ends), len(ids))]


@torch.inference_mode()
def _batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    n: int,
    temperature: float,
    max_new_tokens: int,
    ends: list[int],
) -> torch.Tensor:
    """Token ids written after each prompt, `n` rows a prompt, (len(prompts) * n, tokens)."""
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all go on from the same place
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    own = model.generation_config
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], **sampling)
    # Set aside: its own may hold top-k, top-p or penalties, which `generate` mixes into whatever it is given.
    model.generation_config = config
    try:
        written = model.generate(  # pyright: ignore[reportCallIssue]: transformers types generate as a Module
            ids.repeat_interleave(n, dim=0).to(model.device),
            attention_mask=mask.repeat_interleave(n, dim=0).to(model.device),
        )
    finally:
        model.generation_config = own
    return written[:, width:]
