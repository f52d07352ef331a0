"""What scoring costs: `python benchmarks/score.py --model FOLDER [--gguf FILE] --raw test.jsonl.gz [--quick]`.

TRL's `DPOTrainer._precompute_ref_logps`, a plain transformers loop and our packs, interleaved in one process on the
same token ids, in an order that turns round every other round, with the rate of a matrix product measured right before
and right after each run. Work is counted as the least that the values need: each prompt once, each completion without
its last token, the output matrix where a completion token is predicted, causal attention exactly. Memory is the peak
over the loaded model, each case in a process of its own. The last line is JSON with all rounds.
"""

import argparse
import gc
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from rlhf_data.scoring.allocator import flat, give_back
from rlhf_data.scoring.forwards import forwards
from rlhf_data.scoring.logprobs import default_budget, token_logps
from rlhf_data.scoring.packs import Group, size

Values = dict[tuple[int, int], float]  # (group, completion) → nats


class Work(NamedTuple):
    """The least work that the log-probs of some groups need."""

    tokens: int
    scored: int
    flops: float


class Case(NamedTuple):
    """A way to get the values, and what it has to do."""

    run: Callable[[], Values]
    work: Work
    pairs: int


def groups_of_pairs(raw: Path, tokenizer: PreTrainedTokenizerBase, n: int, max_length: int) -> list[Group]:
    """`n` pairs of HH-RLHF drawn with seed 0, split at the last reply; only pairs of at most `max_length` tokens."""
    end = tokenizer.eos_token_id
    with gzip.open(raw, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    groups: list[Group] = []
    for row in rows:
        halves = [row[side].rpartition("\n\nAssistant:") for side in ("chosen", "rejected")]
        if halves[0][0] != halves[1][0]:
            continue
        texts = [halves[0][0] + "\n\nAssistant:", *(reply for _, _, reply in halves)]
        encoded: list[Any] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        tails: list[Any] = [[*ids, end] for ids in encoded[1:]]
        group = Group(encoded[0], tails)
        if len(group.prompt) + max(map(len, tails)) <= max_length:
            groups.append(group)
        if len(groups) == n:
            return groups
    raise ValueError(f"{raw} has {len(groups)} pairs of at most {max_length} tokens, and {n} were asked for")


def groups_of_four(groups: Sequence[Group], max_length: int) -> list[Group]:
    """The same completions dealt out four to a prompt."""
    every = [completion for group in groups for completion in group.completions]
    fours = [every[i : i + 4] for i in range(0, len(every) - 3, 4)]
    return [
        Group(group.prompt[: max_length - max(map(len, four))], four)
        for group, four in zip(groups, fours, strict=False)
    ]


def work_of(model: PreTrainedModel, groups: Sequence[Group]) -> Work:
    """Tokens through the body, tokens scored, and the floating-point operations of both and of attention."""
    shape = model.config.get_text_config()
    width = shape.num_attention_heads * (
        getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    )
    body = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    tokens = sum(size(group, "packed") for group in groups)
    scored = sum(len(completion) for group in groups for completion in group.completions)
    seen = 0.0
    for prompt, completions in groups:
        p = len(prompt)
        seen += p * (p + 1) / 2 + sum(n * p + n * (n + 1) / 2 for n in (len(one) - 1 for one in completions))
    attention = 4 * seen * width * shape.num_hidden_layers
    return Work(tokens, scored, 2.0 * body * tokens + 2.0 * shape.vocab_size * shape.hidden_size * scored + attention)


def ours(model: PreTrainedModel, groups: Sequence[Group], token_budget: int) -> Values:
    """Packs of whole groups, as the scorer runs them."""
    run = partial(_logps, model, groups)
    return {
        (i, j): float(one.double().sum())
        for picked, measured in forwards(model, groups, "packed", token_budget, run)
        for i, logps in zip(picked, measured, strict=True)
        for j, one in enumerate(logps)
    }


def _logps(model: PreTrainedModel, groups: Sequence[Group], picked: list[int]) -> list[list[torch.Tensor]]:
    return token_logps(model, [groups[i] for i in picked], "packed")


def unshared(model: PreTrainedModel, groups: Sequence[Group], token_budget: int) -> Values:
    """The same packs with each completion's prompt in them again."""
    at = [(i, j) for i, group in enumerate(groups) for j in range(len(group.completions))]
    alone = ours(model, [Group(groups[i].prompt, [groups[i].completions[j]]) for i, j in at], token_budget)
    return {place: alone[n, 0] for n, place in enumerate(at)}


def plain_loop(model: PreTrainedModel, groups: Sequence[Group]) -> Values:
    """A sequence at a time: all logits, log_softmax, gather."""
    values: Values = {}
    with torch.no_grad():
        for i, (prompt, completions) in enumerate(groups):
            for j, completion in enumerate(completions):
                ids = torch.tensor([[*prompt, *completion]], device=model.device)
                logps = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
                picked = logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
                values[i, j] = float(picked.double().sum())
    return values


def token_values(model: PreTrainedModel, groups: Sequence[Group], token_budget: int) -> list[list[torch.Tensor]]:
    """Per-token log-probs of every completion from our packs."""
    values: list[list[torch.Tensor]] = [[] for _ in groups]
    for picked, measured in forwards(model, groups, "packed", token_budget, partial(_logps, model, groups)):
        for i, logps in zip(picked, measured, strict=True):
            values[i] = logps
    return values


def row_by_row(model: PreTrainedModel, groups: Sequence[Group]) -> list[list[torch.Tensor]]:
    """The same, a sequence at a time through the model's own attention: float32 logits, gather − logsumexp."""
    head = model.get_output_embeddings()
    assert head is not None
    weight = head.weight.float()
    values: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for prompt, completions in groups:
            values.append([])
            for completion in completions:
                ids = torch.tensor([[*prompt, *completion]], device=model.device)
                hidden = model.base_model(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
                logits = hidden.float() @ weight.t()
                picked = logits.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
                values[-1].append(picked - logits.logsumexp(1))
    return values


def exactness(model: PreTrainedModel, groups: Sequence[Group], token_budget: int) -> dict[str, float]:
    """How far packs are from a row at a time, and bfloat16 from float32, in nats; converts the model."""
    found = {}
    single: list[torch.Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)  # pyright: ignore[reportArgumentType]: transformers wraps `to` in a decorator without types
        packed = [one for group in token_values(model, groups, token_budget) for one in group]
        alone = [one for group in row_by_row(model, groups) for one in group]
        name = str(dtype).removeprefix("torch.")
        apart = [(one - other).abs() for one, other in zip(packed, alone, strict=True)]
        found[f"{name}: packs from a row at a time, largest of a token"] = max(float(one.max()) for one in apart)
        found[f"{name}: the same, mean of a token"] = float(torch.cat(apart).mean())
        if single:
            sums = [(float(one.sum()), float(other.sum())) for one, other in zip(alone, single, strict=True)]
            found["bfloat16 from float32, largest of a sum"] = max(abs(one - other) for one, other in sums)
            found["bfloat16 from float32, median share of a sum"] = statistics.median(
                abs(one - other) / abs(other) for one, other in sums
            )
        single = alone
    return found


def trl_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str) -> DPOTrainer:
    """TRL's trainer on this model; what it tokenises itself does not matter, it is given ids."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    arguments = DPOConfig(
        output_dir=folder,
        report_to=[],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    return DPOTrainer(model=model, args=arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)


def trl(trainer: DPOTrainer, groups: Sequence[Group], batch: int) -> Values:
    """TRL's own precomputation over all pairs of each group, `batch` pairs at a time, in the order of the data."""
    at = [(i, j, k) for i, group in enumerate(groups) for j, k in combinations(range(len(group.completions)), 2)]
    rows = [
        {
            "prompt_ids": groups[i].prompt,
            "chosen_ids": groups[i].completions[j],
            "rejected_ids": groups[i].completions[k],
        }
        for i, j, k in at
    ]
    trainer._precompute_model_hash = str(time.time_ns())  # or it would find its cache of the round before
    scored = trainer._precompute_ref_logps(Dataset.from_list(rows), "train", batch)
    values: Values = {}
    for (i, j, k), chosen, rejected in zip(at, scored["ref_chosen_logps"], scored["ref_rejected_logps"], strict=True):
        values |= {(i, j): float(chosen), (i, k): float(rejected)}
    return values


def gemm_rate(model: PreTrainedModel) -> tuple[float, float]:
    """GFLOP a second, and a second of processor time, of the products of this model's layers on 2,048 tokens."""
    shape = model.config.get_text_config()
    d, inner = shape.hidden_size, shape.intermediate_size
    narrow, wide = torch.randn(2048, d), torch.randn(2048, inner)
    products = [(narrow, torch.randn(n, d)) for n in (d, 2 * inner)] + [(wide, torch.randn(d, inner))]
    flops = sum(2.0 * len(left) * right.numel() for left, right in products)
    walls, processors = [], []
    with torch.inference_mode():
        for _ in range(8):
            wall, processor = time.perf_counter(), time.process_time()
            for left, right in products:
                torch.nn.functional.linear(left, right)
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    return flops / min(walls) / 1e9, flops / statistics.median(processors) / 1e9


def measure(
    model: PreTrainedModel, cases: dict[str, Callable[[], Case]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Every case once a round; of each run its seconds, pairs a second and share of the rate of products."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases) if turn % 2 == 0 else list(cases)[::-1]:
            case = cases[name]()
            before = gemm_rate(model)
            wall, processor = time.perf_counter(), time.process_time()
            case.run()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            after = gemm_rate(model)
            said = f"round {turn + 1} of {rounds}: {name} {wall:.1f} s, {processor:.1f} of the processor"
            print(said, file=sys.stderr, flush=True)
            rate, processor_rate = ((one + other) / 2 for one, other in zip(before, after, strict=True))
            measured[name].append(
                {
                    "wall_s": wall,
                    "cpu_s": processor,
                    "pairs_per_s": case.pairs / wall,
                    "gflops": case.work.flops / wall / 1e9,
                    "gemm_gflops": rate,
                    "of_gemm": case.work.flops / wall / 1e9 / rate,
                    "of_gemm_cpu": case.work.flops / processor / 1e9 / processor_rate,
                }
            )
    return measured


def ratio(measured: dict[str, list[dict[str, float]]], slower: str, faster: str, per: str = "wall_s") -> float:
    """Median over rounds of how many times longer one case takes than another in the same round."""
    pairs = zip(measured[slower], measured[faster], strict=True)
    return statistics.median(one[per] / other[per] for one, other in pairs)


def show(title: str, measured: dict[str, list[dict[str, float]]], peer: str) -> None:
    """A table of medians, and each round's seconds."""
    print(f"\n{title}")
    heads = ("wall s", "CPU s", "pairs/s", "GFLOP/s", "of GEMM", f"× {peer}")
    print(f"{'':<34}" + "".join(f"{head:>16}" if "×" in head else f"{head:>9}" for head in heads) + "   rounds, s")
    for name, rounds in measured.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        each = " ".join(f"{one['wall_s']:.2f}" for one in rounds)
        print(
            f"{name:<34}{middle['wall_s']:>9.2f}{middle['cpu_s']:>9.2f}{middle['pairs_per_s']:>9.2f}"
            f"{middle['gflops']:>9.1f}{middle['of_gemm']:>9.2f}{ratio(measured, peer, name):>16.2f}   {each}"
        )


def tiny(vocabulary: int) -> PreTrainedModel:
    """A random Llama of two layers whose vocabulary outweighs the rest of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def peak_growth(given: argparse.Namespace, case: dict[str, Any]) -> float:
    """MiB that a case's peak lies over the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--memory", json.dumps(case)]
    command += [argument for name in ("model", "gguf", "raw", "cache") for argument in _given(given, name)]
    environment = flat(os.environ) if case["variant"] == "ours" else None  # as `rlhf-data score` starts itself
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise RuntimeError(f"the memory case {case} failed:\n{ended.stderr}")
    return float(ended.stdout.splitlines()[-1])


def _given(given: argparse.Namespace, name: str) -> list[str]:
    value = getattr(given, name)
    return [] if value is None else [f"--{name}", str(value)]


def memory_case(given: argparse.Namespace, case: dict[str, Any]) -> None:
    """What `peak_growth` runs: prints the MiB of one case."""
    model, tokenizer = _load(given, case.get("vocabulary"))
    groups = _groups(given, tokenizer, case["pairs"])
    warm = [Group(groups[0].prompt[:8], [one[:4] for one in groups[0].completions])]
    if case["variant"] == "trl":
        with tempfile.TemporaryDirectory() as folder:
            trainer = trl_trainer(model, tokenizer, folder)
            trl(trainer, warm, 1)
            print(_growth(lambda: trl(trainer, groups, case["batch"])))
    else:
        ours(model, warm, default_budget(model))
        print(_growth(lambda: ours(model, groups, default_budget(model))))


def _growth(run: Callable[[], object]) -> float:
    gc.collect()
    give_back()  # what loading freed would hide what the run takes
    before = _resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return (max(peak, _resident()) - before) / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _load(given: argparse.Namespace, vocabulary: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from rlhf_data.scoring import models

    reference = {"path": given.model} | ({"gguf_file": given.gguf} if given.gguf else {})
    if vocabulary is not None or given.quick:
        return tiny(vocabulary or 49_152), models.load_tokenizer(reference, cache=given.cache)
    return models.load(reference, dtype="float32", device="cpu", cache=given.cache)


def _groups(given: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, pairs: int) -> list[Group]:
    return groups_of_pairs(given.raw, tokenizer, pairs, given.max_length)


def main() -> None:
    given = _arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    warnings.simplefilter("ignore")
    disable_progress_bars()
    disable_caching()
    if given.memory:
        memory_case(given, json.loads(given.memory))
        return
    model, tokenizer = _load(given)
    groups = _groups(given, tokenizer, given.pairs)
    fours = groups_of_four(groups, given.max_length)
    budget = given.token_budget or default_budget(model)
    rounds = 1 if given.quick else given.rounds
    if given.exact:
        found = exactness(model, groups, budget)
        for name, value in found.items():
            print(f"{name:<60}{value:>12.3g}")
        print(json.dumps({"completions": 2 * len(groups)} | found))
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(model, tokenizer, folder)
        model.eval()
        report = _speed(model, None if given.no_trl else trainer, groups, fours, budget, rounds)
    if not given.no_memory:
        report["peak_mib"] = _memory(given)
    print(json.dumps(report))


def _speed(
    model: PreTrainedModel,
    trainer: DPOTrainer | None,
    groups: list[Group],
    fours: list[Group],
    budget: int,
    rounds: int,
) -> dict[str, Any]:
    work, of_fours = work_of(model, groups), work_of(model, fours)
    warm = groups[:1]
    ours(model, warm, budget)
    plain_loop(model, warm)
    if trainer is not None:
        trl(trainer, warm, 1)
    rng = random.Random(1)
    few = rng.sample(groups, max(1, len(groups) // 100 + (len(groups) % 100 > 0)))

    def case(run: Callable[[], Values], work: Work, pairs: int) -> Callable[[], Case]:
        return lambda: Case(run, work, pairs)

    n, n4 = len(groups), 6 * len(fours)
    peers, peers_of_fours = {}, {}
    if trainer is not None:
        known: DPOTrainer = trainer
        peers = {f"TRL, batch {k}": case(lambda k=k: trl(known, groups, k), work, n) for k in (4, 8)}
        peers_of_fours = {"TRL, all pairs, batch 4": case(lambda: trl(known, fours, 4), of_fours, n4)}
    pairs = measure(
        model,
        peers
        | {
            "plain loop": case(lambda: plain_loop(model, groups), work, n),
            "packs, prompts again": case(lambda: unshared(model, groups, budget), work, n),
            "ours": case(lambda: ours(model, groups, budget), work, n),
            "ours, 1 % new rows": case(lambda: ours(model, few, budget), work_of(model, few), len(few)),
        },
        rounds,
    )
    answers = measure(
        model,
        peers_of_fours
        | {
            "plain loop": case(lambda: plain_loop(model, fours), of_fours, n4),
            "packs, prompts again": case(lambda: unshared(model, fours, budget), of_fours, n4),
            "ours": case(lambda: ours(model, fours, budget), of_fours, n4),
        },
        rounds,
    )
    exact = ours(model, groups, budget)
    theirs = plain_loop(model, groups) if trainer is None else trl(trainer, groups, 4)
    apart = max(abs(exact[at] - theirs[at]) for at in exact)
    peer = "the plain loop" if trainer is None else "TRL"
    print(f"{n} pairs: {work.tokens:,} tokens, {work.scored:,} scored, {work.flops / 1e9:,.0f} GFLOP at least")
    print(f"largest difference of a completion's sum from {peer}'s: {apart:.2g} nats")
    show(f"{n} pairs; medians of {rounds} rounds", pairs, next(iter(pairs)))
    show(f"{len(fours)} prompts of 4 answers, {n4} pairs of them", answers, next(iter(answers)))
    ratios = {f"{name} / ours": ratio(pairs, name, "ours") for name in (*peers, "plain loop")}
    ratios |= {f"{name} / ours, CPU s": ratio(pairs, name, "ours", "cpu_s") for name in peers}
    slower = (*peers_of_fours, "plain loop", "packs, prompts again")
    ratios |= {f"groups of 4: {name} / ours": ratio(answers, name, "ours") for name in slower}
    ratios |= {f"groups of 4: {name} / ours, CPU s": ratio(answers, name, "ours", "cpu_s") for name in slower}
    ratios |= {
        "seconds a token of 1 % new rows / of all rows": ratio(pairs, "ours, 1 % new rows", "ours")
        * work.tokens
        / work_of(model, few).tokens,
        "of GEMM": statistics.median(one["of_gemm"] for one in pairs["ours"]),
        "of GEMM, CPU s": statistics.median(one["of_gemm_cpu"] for one in pairs["ours"]),
        "groups of 4: of GEMM": statistics.median(one["of_gemm"] for one in answers["ours"]),
    }
    print()
    for name, value in ratios.items():
        print(f"{name:<48}{value:>8.2f}")
    return {"work": work._asdict(), "apart_nats": apart, "ratios": ratios, "pairs": pairs, "groups_of_4": answers}


def _memory(given: argparse.Namespace) -> dict[str, float]:
    many = 200 if given.quick else 2000
    cases: dict[str, dict[str, Any]] = {
        "TRL, batch 4": {"variant": "trl", "pairs": 24, "batch": 4},
        "TRL, batch 8": {"variant": "trl", "pairs": 24, "batch": 8},
        "ours, 24 pairs": {"variant": "ours", "pairs": 24},
        f"ours, tiny model, {many} pairs, vocabulary 49,152": {"variant": "ours", "pairs": many, "vocabulary": 49_152},
        "ours, tiny model, 24 pairs, vocabulary 49,152": {"variant": "ours", "pairs": 24, "vocabulary": 49_152},
        "ours, tiny model, 24 pairs, vocabulary 150,000": {"variant": "ours", "pairs": 24, "vocabulary": 150_000},
    }
    if not given.quick:
        cases["ours, 2,000 pairs"] = {"variant": "ours", "pairs": many}
    if given.quick:
        for case in cases.values():
            case.setdefault("vocabulary", 49_152)
    print("\npeak over the loaded model, MiB")
    peaks = {}
    for name, case in cases.items():
        peaks[name] = peak_growth(given, case)
        print(f"{name:<52}{peaks[name]:>8.0f}", flush=True)
    return peaks


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--gguf", help="file of that folder to read weights from")
    parser.add_argument("--raw", type=Path, required=True, help="HH-RLHF's test.jsonl.gz")
    parser.add_argument("--cache", type=Path, default=Path(".rlhf"), help="folder for the dequantised model")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--token-budget", type=int, help="most tokens of a forward; the scorer's default if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="without the processes that measure memory")
    parser.add_argument("--no-trl", action="store_true", help="without TRL, which takes nine tenths of the time")
    parser.add_argument("--exact", action="store_true", help="only say how exact the values of --pairs pairs are")
    parser.add_argument("--quick", action="store_true", help="one round of a tiny random model with this tokenizer")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
