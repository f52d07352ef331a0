"""A DPO step beside TRL's: `python benchmarks/train.py --model FOLDER [--gguf FILE] --raw DATA | --quick`.

TRL's `DPOTrainer.training_step` and a step of ours run in turn in one process, batch by batch, on the same pairs of
HH-RLHF (drawn by seed, none longer than the maximum, so that neither side cuts anything) with the same token ids,
float32, the same reference log-probs in the table, clipping and AdamW on both sides, no gradient checkpointing. Who
goes first changes from batch to batch. Collating is part of their step, planning and packing of ours. The losses of
both must agree. The rate of a large float32 product is measured beside each batch. Memory is the growth of a process
of its own, over the model with its gradients and AdamW's state. Ends with one line of JSON: every figure of every
round.
"""

import argparse
import gc
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BETA, RATE, CLIP = 0.1, 1e-6, 1.0
QUICK = ["kettle", "red", "of course", "a b c d", "7 2 9 4", "lend me the pen", "who cares", "gladly , the blue cup"]


class Prepared(NamedTuple):
    """What both sides start from, on disk: a plain model, its tokenizer, and pairs as token ids with references."""

    model: str
    pairs: list[dict[str, Any]]


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = prepare(asked, folder)
        rounds = race(asked, given)
        memory = {} if asked.no_memory else {side: growth(side, asked, given, folder) for side in ("trl", "ours")}
    report(asked, rounds, memory)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny random model and made-up pairs: within a minute")
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--gguf", help="a GGUF file in it, dequantised once")
    parser.add_argument("--raw", type=Path, help="folder that holds hh_rlhf_harmless/test.jsonl.gz")
    parser.add_argument("--cache", type=Path, help="where the dequantised model stays for the next time")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=4, help="in a batch")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1, help="passes over all batches")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of pairs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave out the two processes that measure memory")
    parser.add_argument("--alone", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        given = Prepared(**json.loads(asked.prepared.read_text()))
        print(json.dumps(grown(asked.alone, asked, given)))
        raise SystemExit
    if asked.quick:
        asked.batches, asked.max_length = 4, 120
    elif not (asked.model and asked.raw):
        parser.error("give --model and --raw, or --quick")
    return asked


def prepare(asked: argparse.Namespace, folder: Path) -> Prepared:
    """The model as a plain folder, and the drawn pairs with the model's own log-probs as references.

    The template is cut so that it writes nothing after an answer's end: TRL would score that, and we do not.
    """
    import torch

    from rlhf_data.scoring import models
    from rlhf_data.scoring.encode import encode, prompt_limit
    from rlhf_data.scoring.logprobs import default_budget, layout_of
    from rlhf_data.scoring.packs import Group
    from rlhf_data.training.step import Policy, sequence_logps

    if asked.quick:
        from rlhf_data.world.model import save_model

        save_model(folder / "tiny", QUICK, seed=0)
        reference = {"path": str(folder / "tiny")}
    else:
        reference = {"path": asked.model} | ({"gguf_file": asked.gguf} if asked.gguf else {})
    net, tokenizer = models.load(
        reference, dtype="float32", device=asked.device, max_length=asked.max_length, cache=asked.cache or folder
    )
    end = tokenizer.eos_token
    assert isinstance(tokenizer.chat_template, str) and isinstance(end, str)
    for newline in ("\\n", "\n"):
        for written in (f"'{end}' + '{newline}'", f'"{end}" + "{newline}"'):
            tokenizer.chat_template = tokenizer.chat_template.replace(written, f"'{end}'")
    tokenizer.chat_template = tokenizer.chat_template.replace(f"{end}\n{{%", f"{end}{{%")
    drawn = made_up() if asked.quick else dialogues(asked.raw)
    random.Random(asked.seed).shuffle(drawn)
    wanted = asked.batches * asked.pairs
    limit = prompt_limit(asked.max_length, None)
    kept: list[dict[str, Any]] = []
    for start in range(0, len(drawn), wanted):
        part = drawn[start : start + wanted]
        sides = [
            encode(
                tokenizer,
                [pair["prompt"] for pair in part],
                [pair[side] for pair in part],
                template="chat",
                max_length=asked.max_length,
                max_prompt_length=limit,
            )
            for side in ("chosen", "rejected")
        ]
        for i, pair in enumerate(part):
            if any(side.refused[i] or side.truncated[i] for side in sides):
                continue
            ids = {"prompt": sides[0].prompt_ids[i], "chosen": sides[0].completion_ids[i]}
            ids["rejected"] = sides[1].completion_ids[i]
            if ids["chosen"] != ids["rejected"]:
                kept.append(pair | {f"{name}_ids": list(map(int, values)) for name, values in ids.items()})
        if len(kept) >= wanted:
            break
    kept = kept[:wanted]
    policy = Policy(net, layout_of(net), default_budget(net))
    for pair in kept:
        group = Group(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]])
        (logps,) = sequence_logps(policy, [group]).tolist()
        pair["ref_chosen_logps"], pair["ref_rejected_logps"] = logps
    net.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    del net, policy
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Prepared(str(folder / "model"), kept)


def dialogues(raw: Path) -> list[dict[str, Any]]:
    """The pairs of HH-RLHF's harmless test set, as the adapter reads them."""
    import polars as pl

    from rlhf_data.sources import hh_rlhf

    with gzip.open(raw / "hh_rlhf_harmless" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        frame = pl.DataFrame([json.loads(line) for line in lines]).with_row_index("record")
    rows = hh_rlhf.read(frame).rows.select("prompt", chosen="completion", rejected="other")
    return [row for row in rows.to_dicts() if row["chosen"] and row["rejected"]]


def made_up() -> list[dict[str, Any]]:
    pairs = []
    for i in range(64):
        prompt = [{"role": "user", "content": " ".join(QUICK[(i + k) % 8] for k in range(1 + i % 4))}]
        pairs.append({"prompt": prompt, "chosen": QUICK[i % 8], "rejected": f"{QUICK[(i * 3 + 1) % 8]} {QUICK[i % 5]}"})
    return pairs


def ours(asked: argparse.Namespace, given: Prepared) -> tuple[Callable[[Sequence[int]], float], dict[str, float]]:
    """A step of ours over rows by number, which returns its loss; and seconds of its parts, which it adds to."""
    import torch

    from rlhf_data import rules
    from rlhf_data.scoring import logprobs, models
    from rlhf_data.scoring.packs import Group
    from rlhf_data.training import metrics, step
    from rlhf_data.training.batches import Rows
    from rlhf_data.training.optimizer import adamw

    spent: dict[str, float] = defaultdict(float)
    clock(step, "plan", "loader", spent)
    clock(logprobs, "pack", "loader", spent)
    clock(step, "batch", "rule", spent)
    clock(step, "weighted_loss", "rule", spent)
    clock(metrics, "step_metrics", "metrics", spent)
    made = rules.rule

    def rule(*arguments: Any, **parameters: Any) -> Callable[..., Any]:
        return clocked(made(*arguments, **parameters), "rule", spent)

    rules.rule = rule
    net, _ = models.load(
        {"path": given.model},
        dtype="float32",
        device=asked.device,
        max_length=asked.max_length,
        cache=Path(given.model),
    )
    policy = step.Policy(net, logprobs.layout_of(net), logprobs.default_budget(net))
    n = len(given.pairs)
    references = ("ref_chosen_logps", "ref_rejected_logps")
    columns: dict[str, Any] = {name: [pair[name] for pair in given.pairs] for name in references}
    columns |= {"weight": [1.0] * n, "preference": [1.0] * n, "source": ["hh"] * n, "category": [None] * n}
    groups = [Group(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]) for pair in given.pairs]
    rows = Rows([f"pair-{i}" for i in range(n)], groups, [], columns, {})
    optimizer = adamw(net, 0.0)
    for group in optimizer.param_groups:
        group["lr"] = RATE

    def run(picked: Sequence[int]) -> float:
        optimizer.zero_grad(set_to_none=True)
        done = step.accumulate(policy, rows, picked, "dpo", {"beta": BETA})
        spent["tokens"] += done.tokens
        line = metrics.step_metrics(done.batch, done.weights, rows, picked, "dpo", {"beta": BETA}, done.memory)
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        return line["loss"]

    run.optimizer, run.model = optimizer, net  # type: ignore[attr-defined]
    return run, spent


def trls(asked: argparse.Namespace, given: Prepared) -> Callable[[Sequence[int]], float]:
    """A step of TRL's trainer over the same rows; ValueError where its token ids are not ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {"prompt": pair["prompt"], "chosen": answer(pair["chosen"]), "rejected": answer(pair["rejected"])}
        for pair in given.pairs
    ]
    net = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    # Its references stand in the batches; this keeps it from loading the model a second time.
    nobody = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with tempfile.TemporaryDirectory() as name:
        peer = DPOTrainer(
            model=net,
            ref_model=nobody,
            args=DPOConfig(
                output_dir=name,
                beta=BETA,
                learning_rate=RATE,
                max_length=asked.max_length,
                per_device_train_batch_size=asked.pairs,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=asked.device == "cpu",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(given.model),
        )
    peer.precompute_ref_logps, peer.ref_model = True, None
    peer.current_gradient_accumulation_steps = 1  # which its `train` would set
    assert peer.model is not None
    model: Any = peer.model
    table: list[dict[str, Any]] = [dict(row) for row in peer.train_dataset]
    for row, pair in zip(table, given.pairs, strict=True):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            if row[name] != pair[name]:
                raise ValueError(f"TRL has other {name} than we: {row[name]} and {pair[name]}")
        row.update({name: pair[name] for name in ("ref_chosen_logps", "ref_rejected_logps")})
    optimizer = peer.create_optimizer()
    model.train()

    def run(picked: Sequence[int]) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = peer.training_step(model, peer.data_collator([table[i] for i in picked]))
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss)

    run.optimizer, run.model = optimizer, net  # type: ignore[attr-defined]
    return run


def race(asked: argparse.Namespace, given: Prepared) -> list[dict[str, Any]]:
    """Every batch on both sides, who goes first in turn; a line each, printed as it comes."""
    import torch

    warnings.simplefilter("ignore")
    mine, spent = ours(asked, given)
    sides = {"trl": trls(asked, given), "ours": mine}
    needed = flops(mine.model, given.pairs)  # type: ignore[attr-defined]
    widest = max(
        range(len(given.pairs)), key=lambda i: sum(len(given.pairs[i][f"{s}_ids"]) for s in ("prompt", "chosen"))
    )
    for side in sides.values():  # the first step allocates, and is nobody's figure
        side([widest])
    print(
        f"{'batch':>7}{'TRL s':>9}{'ours s':>9}{'ratio':>7}{'CPU ratio':>11}{'tokens':>8}"
        f"{'loss TRL':>11}{'loss ours':>11}",
        flush=True,
    )
    lines = []
    for number in range(asked.rounds * asked.batches):
        batch = number % asked.batches
        picked = range(batch * asked.pairs, (batch + 1) * asked.pairs)
        line: dict[str, Any] = {"batch": batch, "gemm": gemm(asked.device)}
        before = dict(spent)
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            line[f"loss_{name}"] = sides[name](picked)
            if asked.device != "cpu":
                torch.cuda.synchronize()
            line[f"cpu_{name}"] = time.process_time() - cpu
            line[name] = time.perf_counter() - wall
        line |= {part: seconds - before.get(part, 0.0) for part, seconds in spent.items()}
        line["gflop"] = sum(needed[i] for i in picked) / 1e9
        lines.append(line)
        print(
            f"{batch:>7}{line['trl']:>9.2f}{line['ours']:>9.2f}{line['trl'] / line['ours']:>7.2f}"
            f"{line['cpu_trl'] / line['cpu_ours']:>11.2f}{line['tokens']:>8.0f}"
            f"{line['loss_trl']:>11.5f}{line['loss_ours']:>11.5f}",
            flush=True,
        )
    return lines


def flops(model: Any, pairs: list[dict[str, Any]]) -> list[float]:
    """Least work of a step for each pair, AdamW aside: three times its forward.

    Each prompt once, a completion's last token never, the output matrix on completion tokens; two operations for each
    entry of a matrix and token, and attention's two products, counted causally.
    """
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    embedded = model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2 and p is not embedded)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    work = []
    for pair in pairs:
        prompt, answers = len(pair["prompt_ids"]), [len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")]
        tokens = prompt + sum(answers) - 2
        seen = prompt * (prompt + 1) / 2 + sum((n - 1) * prompt + (n - 1) * n / 2 for n in answers)
        attention = 4 * config.num_hidden_layers * width * seen
        work.append(3 * (2 * body * tokens + 2 * head * sum(answers) + attention))
    return work


def gemm(device: str) -> float:
    """GFLOP/s of a float32 product of 2048 × 1536 by 1536 × 576, the median of five."""
    import torch

    a, b = torch.randn(2048, 1536, device=device), torch.randn(1536, 576, device=device)
    seconds = []
    for _ in range(5):
        at = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - at)
    return 2 * 2048 * 1536 * 576 / statistics.median(seconds) / 1e9


def growth(side: str, asked: argparse.Namespace, given: Prepared, folder: Path) -> dict[str, float]:
    """What `grown` says, from a process of its own."""
    (folder / "prepared.json").write_text(json.dumps(given._asdict()))
    numbers = [
        f"--{name}={getattr(asked, name.replace('-', '_'))}" for name in ("batches", "pairs", "max-length", "device")
    ]
    command = [sys.executable, __file__, "--alone", side, "--prepared", str(folder / "prepared.json"), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def grown(side: str, asked: argparse.Namespace, given: Prepared) -> dict[str, float]:
    """MiB that one side's steps add at most to a process that holds model, gradients and AdamW's state."""
    import torch

    from rlhf_data.scoring.allocator import give_back

    warnings.simplefilter("ignore")
    run: Any = ours(asked, given)[0] if side == "ours" else trls(asked, given)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    for group in run.optimizer.param_groups:
        group["lr"] = RATE
    if asked.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for start in range(0, len(given.pairs), asked.pairs):
            run(range(start, start + asked.pairs))
        return {"before": before / 2**20, "growth": (torch.cuda.max_memory_allocated() - before) / 2**20}
    gc.collect()
    give_back()  # what loading freed would hide what the steps take
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    for start in range(0, len(given.pairs), asked.pairs):
        run(range(start, start + asked.pairs))
    return {"before": before, "growth": status("VmHWM") - before}


def status(name: str) -> float:
    """A figure of this process's memory, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def clock(owner: Any, name: str, part: str, spent: dict[str, float]) -> None:
    """Let a function of a module add its seconds to a part."""
    setattr(owner, name, clocked(getattr(owner, name), part, spent))


def clocked(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        at = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - at

    return call


def report(asked: argparse.Namespace, lines: list[dict[str, Any]], memory: dict[str, dict[str, float]]) -> None:
    """The table of all batches and rounds, and the line of JSON."""
    totals = {name: sum(line[name] for line in lines) for name in ("trl", "ours", "cpu_trl", "cpu_ours", "gflop")}
    ratios = [line["trl"] / line["ours"] for line in lines]
    parts = {
        part: sum(line.get(part, 0.0) for line in lines) / totals["ours"] for part in ("rule", "loader", "metrics")
    }
    rate = totals["gflop"] / totals["ours"]
    result = {
        "ratio": totals["trl"] / totals["ours"],
        "cpu_ratio": totals["cpu_trl"] / totals["cpu_ours"],
        "median_ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "seconds": {name: totals[name] for name in ("trl", "ours")},
        "pairs_per_second": {name: asked.pairs * len(lines) / totals[name] for name in ("trl", "ours")},
        "share_of_a_step": parts,
        "gflops": rate,
        "gemm": statistics.median(line["gemm"] for line in lines),
        "largest_loss_difference": max(abs(line["loss_trl"] - line["loss_ours"]) for line in lines),
        "memory": memory,
    }
    print(f"\n{len(lines)} batches of {asked.pairs} pairs, at most {asked.max_length} tokens, AdamW included")
    print(f"{'':<26}{'TRL':>12}{'ours':>12}{'ratio':>9}")
    print(f"{'wall, s':<26}{totals['trl']:>12.2f}{totals['ours']:>12.2f}{result['ratio']:>9.2f}")
    print(f"{'CPU, s':<26}{totals['cpu_trl']:>12.2f}{totals['cpu_ours']:>12.2f}{result['cpu_ratio']:>9.2f}")
    if memory:
        grew = {side: memory[side]["growth"] for side in memory}
        result["memory_ratio"] = grew["trl"] / grew["ours"]
        print(f"{'growth of memory, MiB':<26}{grew['trl']:>12.0f}{grew['ours']:>12.0f}{result['memory_ratio']:>9.2f}")
    print(f"per batch: median {result['median_ratio']:.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    print("of our step: " + ", ".join(f"{part} {share:.2%}" for part, share in parts.items()))
    print(
        f"ours: {rate:.1f} GFLOP/s of the least work, {rate / result['gemm']:.2f} of the {result['gemm']:.0f} GFLOP/s "
        "of a large product beside it"
    )
    print(f"largest difference of a loss: {result['largest_loss_difference']:.2g}")
    print(json.dumps(result | {"rounds": lines}))


if __name__ == "__main__":
    main()
