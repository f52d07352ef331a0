"""The steps of a run, from the last checkpoint to the end."""

import math
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from xxhash import xxh3_64_intdigest

from rlhf_data import rules
from rlhf_data.order import steps_of_epoch
from rlhf_data.scoring.allocator import give_back
from rlhf_data.scoring.progress import bar, say
from rlhf_data.training import checkpoint, metrics, planned
from rlhf_data.training.batches import Rows
from rlhf_data.training.beside import Beside
from rlhf_data.training.gate import check_first_batch
from rlhf_data.training.optimizer import adamw, learning_rate_at
from rlhf_data.training.ranks import sum_gradients
from rlhf_data.training.sharding import whole
from rlhf_data.training.step import Policy, accumulate


def optimise(
    run: Path,
    policy: Policy,
    rows: Rows,
    arguments: dict[str, Any],
    recipe: dict[str, Any] | None,
    checkpoint_every: int,
    progress: bool,
    beside: Beside,
) -> dict[str, Any]:
    """All steps that a checkpoint does not have behind it already; returns what came out of them.

    Of several ranks each runs its share of every step, and the first writes.
    """
    model, first_rank = policy.model, policy.ranks.first
    size, seed = arguments["batch_size"], arguments["seed"]
    demands = planned.demands(rows, arguments["rule"])
    per_epoch = steps_of_epoch(rows.ids, size=size, groups=demands.groups, even=demands.even)
    total = min(math.ceil(arguments["epochs"] * per_epoch - 1e-9), arguments["max_steps"] or 1 << 62)
    optimizer = adamw(model, arguments["weight_decay"])
    found = checkpoint.restore(run / "checkpoints", model, optimizer, beside.values)
    first, memory = found.get("step", 0), found.get("memory", rules.memory(arguments["rule"]))
    beside.memories = found.get("memories", beside.memories)
    if (arguments["lora"] or {}).get("dropout"):
        for what, before, now in (
            ("number of ranks", found.get("ranks"), policy.ranks.world),
            ("token_budget", found.get("token_budget"), policy.token_budget),
        ):
            if before not in (None, now):
                told = f"the run goes on with another {what} ({before} before, {now} now), whose dropout differs"
                say(f"{told}: its result is another than it would have been, neither better nor worse", shown=progress)
    if first_rank:
        metrics.keep_until(run / "metrics.jsonl", first)
    batches = planned.batches(run if first_rank else None, first, rows.ids, demands, size=size, seed=seed)
    gap = None
    if first == 0:
        picked = next(batches)
        batches = chain([picked], batches)
        gap = check_first_batch(policy, rows, picked, recipe, arguments)
        beside.check(policy, arguments)
    line: dict[str, Any] = {}
    shown = bar("train", "steps", total=total, initial=first, shown=progress and first_rank)
    for step in range(first, total):
        at = time.monotonic()
        rate = learning_rate_at(
            step,
            total,
            peak=arguments["learning_rate"],
            warmup=arguments["warmup"],
            schedule=arguments["schedule"],
        )
        picked = next(batches)
        # A function of the step, so that a run that resumes draws what it would have drawn; each rank draws its own.
        torch.manual_seed(xxh3_64_intdigest(f"dropout:{seed}:{step}:{policy.ranks.rank}".encode()))
        line, tokens, memory = _step(policy, optimizer, rows, picked, rate, arguments, memory, beside, step)
        speed = {"tokens_per_second": round(tokens / (time.monotonic() - at), 1)}
        line = {"step": step + 1, "epoch": round((step + 1) / per_epoch, 6)} | line | speed
        if first_rank:
            metrics.append(run / "metrics.jsonl", line)
        shown.set_postfix_str(f"loss {line['loss']:.3g}, {speed['tokens_per_second']:,.0f} tokens/s", refresh=False)
        shown.update()
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < total:
            carried = {"memory": memory, "memories": beside.memories, "token_budget": policy.token_budget}
            checkpoint.save(run / "checkpoints", step + 1, model, optimizer, beside.values, carried, policy.ranks)
    shown.close()
    return {"steps": total, "steps_per_epoch": per_epoch, "first_batch_gap": gap, "last": line}


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    picked: list[int],
    rate: float,
    arguments: dict[str, Any],
    memory: dict[str, float],
    beside: Beside,
    step: int,
) -> tuple[dict[str, Any], int, dict[str, float]]:
    """One update of the parameters; returns its metrics, the tokens it ran, and what the rule remembers now."""
    rule, parameters = arguments["rule"], arguments["parameters"]
    optimizer.zero_grad(set_to_none=True)
    seen, at = beside.seen(policy, rows, picked, rules.columns(rule))
    done = accumulate(policy, seen, at, rule, parameters, memory)
    blended, tokens = beside.accumulate(policy, step)
    if not policy.sharded:
        sum_gradients(policy.model.parameters(), policy.ranks)
    line = metrics.step_metrics(done.batch, done.weights, seen, at, rule, parameters, done.memory)
    norm = whole(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), arguments["max_grad_norm"] or math.inf))
    if not (math.isfinite(line["loss"]) and math.isfinite(norm)):
        ids = ", ".join(rows.ids[i] for i in picked)
        raise ValueError(
            f"loss {line['loss']}, gradient norm {float(norm)} is no number: lower learning_rate, or look at these "
            f"rows: {ids}"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    give_back()
    line |= blended | beside.after(step + 1) | {"learning_rate": rate, "grad_norm": float(norm)}
    return line, done.tokens + tokens, done.memory
