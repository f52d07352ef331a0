"""Token ids to packed tensors on one core: `python benchmarks/loader.py [--quick] [--hh FILE] [--tokenizer FOLDER]`.

Pairs are made up, or those of an HH-RLHF file (.jsonl.gz); the tokenizer is a folder's, or a byte-level BPE trained on
the same texts. Token ids are stored once (timed apart). Each round then runs, in turn: reading the stored ids; reading
and planning and packing them as the scorer does (all groups, packs of 2,048 tokens) and as the trainer does (steps of
16 pairs in the order of an epoch); and the peers, which only tokenise: a row at a time with `datasets.map`, prompt,
prompt + chosen and prompt + rejected, as TRL does, and batches of 1,000 texts a column. Tokens are those of prompt,
chosen and rejected, counted once a column for everyone; speeds are by the clock and, as machines are shared, by CPU
time. Ends with one line of JSON: every figure of every round.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_data.order import batches_from, steps_of_epoch
from rlhf_data.scoring.packs import pack, plan
from rlhf_data.scoring.tokens import Groups, Tokens, read_tokens

BUDGET, STEP = 2048, 16
LENGTHS = {"template": "plain", "max_length": 1024, "max_prompt_length": 768}
MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
CPU = torch.device("cpu")
Texts = list[tuple[str, str, str]]  # prompt, chosen, rejected


def made_up(n: int) -> Texts:
    """Pairs of some 100 to 700 characters a text, of made-up words."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 9, 5000)]
    blob = " ".join(rng.choice(words, 400_000))
    starts, sizes = rng.integers(0, len(blob) - 700, (n, 3)), rng.integers(100, 700, (n, 3))
    return [tuple(blob[a : a + size] for a, size in zip(*row, strict=True)) for row in zip(starts, sizes, strict=True)]  # type: ignore[misc]


def of_hh(file: Path) -> Texts:
    """The pairs of an HH-RLHF file whose dialogues part at the last answer."""
    rows = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            sides = [line[side].rpartition("\n\nAssistant:") for side in ("chosen", "rejected")]
            if sides[0][0] == sides[1][0]:
                rows.append((sides[0][0] + "\n\nAssistant:", sides[0][2], sides[1][2]))
    return rows


def trained(texts: Texts) -> PreTrainedTokenizerBase:
    """A byte-level BPE of 16,384 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=16_384, special_tokens=["<eos>"], show_progress=False)
    bpe.train_from_iterator((text for row in texts[:4000] for text in row), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def table(texts: Texts) -> dict[str, pa.ChunkedArray]:
    """What `read_tokens` takes."""
    prompts = [[{"role": "user", "content": prompt}] for prompt, _, _ in texts]
    columns = {"prompt": pa.array(prompts, MESSAGES)}
    columns |= {name: pa.array([row[at] for row in texts]) for at, name in ((1, "chosen"), (2, "rejected"))}
    return {name: pa.chunked_array([column]) for name, column in columns.items()}


def groups_of(tokens: Tokens) -> Groups:
    """The rows that were encoded, as the trainer sees them."""
    sides = np.stack([tokens.completions[side] for side in ("chosen", "rejected")], axis=1)
    kept = (sides >= 0).all(1)
    return Groups(tokens.ids, tokens.prompt[kept], sides[kept])


def packed_for_scoring(groups: Groups) -> int:
    """Tokens in packs of all groups."""
    parts = plan(groups, BUDGET, "packed")
    return sum(pack([groups[i] for i in part], CPU).input_ids.numel() for part in parts)


def packed_for_training(groups: Groups) -> int:
    """Tokens in packs of each step's groups."""
    ids = [f"{i:032x}" for i in range(len(groups))]
    steps, ran = batches_from(0, ids, size=STEP, seed=0), 0
    for _ in range(steps_of_epoch(ids, size=STEP)):
        picked = [groups[i] for i in next(steps)]
        ran += sum(pack([picked[i] for i in part], CPU).input_ids.numel() for part in plan(picked, BUDGET, "packed"))
    return ran


def row_by_row(texts: Texts, tokenizer: PreTrainedTokenizerBase) -> None:
    """As TRL's DPOTrainer prepares its dataset."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()

    def tokenise(row: dict[str, str]) -> dict[str, Any]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = [tokenizer(row["prompt"] + row[side])["input_ids"] for side in ("chosen", "rejected")]
        return {"prompt_ids": prompt, "chosen_ids": whole[0][len(prompt) :], "rejected_ids": whole[1][len(prompt) :]}

    columns = {name: [row[at] for row in texts] for at, name in enumerate(("prompt", "chosen", "rejected"))}
    datasets.Dataset.from_dict(columns).map(tokenise, remove_columns=list(columns))


def in_batches(texts: Texts, tokenizer: PreTrainedTokenizerBase) -> None:
    """A list of texts a call."""
    for at in range(3):
        for start in range(0, len(texts), 1000):
            tokenizer([row[at] for row in texts[start : start + 1000]], return_attention_mask=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of a few pairs")
    parser.add_argument("--hh", type=Path, help="an HH-RLHF file, .jsonl.gz, in place of made-up pairs")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer, in place of one trained here")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up pairs")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows, rounds = (2_000, 1) if given.quick else (given.rows, given.rounds)
    texts = of_hh(given.hh) if given.hh else made_up(rows)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer) if given.tokenizer else trained(texts)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "tokens" / "train"
        columns = table(texts)
        read: Callable[[], Tokens] = lambda: read_tokens(columns, len(texts), tokenizer, stored=stored, **LENGTHS)  # noqa: E731
        started = time.perf_counter()
        groups = groups_of(read())
        first = time.perf_counter() - started
        held = sum(path.stat().st_size for path in stored.parent.iterdir())
        lengths = groups.ids.lengths
        n = int(lengths[groups.prompt].sum() + lengths[groups.completions].sum())
        peers = texts[: max(1, len(texts) // 5)]  # a part is enough: they cost the same for every row
        share = len(peers) / len(texts)
        timed: dict[str, tuple[Callable[[], object], float]] = {
            "read stored ids": (read, n),
            "read, plan and pack for scoring": (lambda: packed_for_scoring(groups_of(read())), n),
            "read, plan and pack for training": (lambda: packed_for_training(groups_of(read())), n),
            "datasets.map, a row at a time": (lambda: row_by_row(peers, tokenizer), n * share),
            "tokenizer, batches of 1,000": (lambda: in_batches(peers, tokenizer), n * share),
        }
        speeds: dict[str, list[tuple[int, int]]] = {name: [] for name in timed}  # by the clock, and by CPU time
        for _ in range(rounds):
            for name, (task, tokens) in timed.items():
                started, used = time.perf_counter(), time.process_time()
                task()
                clock, cpu = time.perf_counter() - started, time.process_time() - used
                speeds[name].append((round(tokens / clock), round(tokens / cpu)))
    print(f"{len(groups):,} pairs, {n:,} tokens, {held / n:.2f} bytes a token stored, {groups.ids.values.dtype}")
    print(f"{'tokens/s':<36}{'wall':>14}{'CPU':>14}")
    print(f"{'made and stored once':<36}{n / first:>14,.0f}")
    for name, values in speeds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:<36}{wall:>14,.0f}{cpu:>14,.0f}")
    print(
        json.dumps({"pairs": len(groups), "tokens": n, "stored_bytes": held, "first_seconds": first, "speeds": speeds})
    )


if __name__ == "__main__":
    main()
