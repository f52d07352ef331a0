"""Training with any rule from a snapshot; a killed run goes on exactly where it stood."""

import json
import math
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_data import files, rules
from rlhf_data.scoring import models
from rlhf_data.scoring.encode import prompt_limit
from rlhf_data.scoring.identity import content_hash, tell
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.progress import say
from rlhf_data.scoring.rewards import layout_of_scores, load_reward_model
from rlhf_data.training.batches import manifest_of, read_rows, read_split
from rlhf_data.training.gate import check_encoding
from rlhf_data.training.loop import optimise
from rlhf_data.training.optimizer import Schedule
from rlhf_data.training.step import Policy


def train(
    snapshot: Path,
    run: Path,
    *,
    rule: rules.Rule,
    parameters: dict[str, Any] | None = None,
    model: dict[str, Any],
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    condition: dict[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    split: str = "train",
    epochs: float = 1.0,
    max_steps: int | None = None,
    batch_size: int = 16,
    token_budget: int | None = None,
    learning_rate: float = 1e-6,
    warmup: float = 0.1,
    schedule: Schedule = "linear",
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    checkpoint_every: int = 100,
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `model` on a snapshot with a rule; without dropout, by AdamW.

    A run that has finished returns its manifest at once; one that was killed resumes from its last checkpoint and, on
    a CPU, ends with the same bits as if it had not been.

    Args:
        snapshot: folder of a published snapshot.
        run: folder to write: metrics.jsonl, checkpoints/, then model/, manifest.json and _SUCCESS.
        rule: a name of `rules.RULES`, or a rule in any other form that `rlhf_data.rules` knows.
        parameters: the rule's hyperparameters; its defaults for the rest.
        model: reference {"path", "gguf_file"?, "revision"?} of the policy to start from; a rule over scores gives it a
            scalar head, unless it has one, and saves a standard sequence-classification model.
        template: see `scoring.encode.encode`; as when the references were scored.
        max_length: most tokens of prompt and completion.
        max_prompt_length: most tokens of a prompt, 3/4 of `max_length` by default.
        condition: see `scoring.condition`: each row's class stands in its prompt. Stored references are of prompts
            without it, so a rule that reads them is refused.
        dtype: of the parameters; "auto" is float32 on every device, as small updates vanish in bfloat16.
        device: see `models.load`.
        split: which part of the snapshot to train on.
        epochs: passes over the rows; may be a fraction.
        max_steps: an upper limit to optimizer steps.
        batch_size: rows of an optimizer step, however many forwards that takes; on average, where a rule wants all
            answers to a prompt in one step.
        token_budget: most tokens of a forward; changes speed and memory, not the result beyond rounding.
        learning_rate: its peak.
        warmup: share of the steps over which it rises from 0.
        schedule: how it falls after that: "linear" or "cosine" to 0, or "constant".
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        seed: of the order of rows.
        checkpoint_every: steps between checkpoints; 0 for none.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr shows loss and tokens per second.

    Returns:
        The run's manifest: everything to repeat it, and what came out.

    Raises:
        ValueError: wrong arguments; a snapshot that does not serve the rule; references that are not of these tokens;
            a run folder of another run; too little memory; a loss or gradient that is no number.
    """
    if (run / "_SUCCESS").is_file():
        return json.loads((run / "manifest.json").read_text())
    device = models.device_name(device)
    parameters = rules.parameters(rule) | (parameters or {})
    source = manifest_of(snapshot)
    encoding = {
        "template": template,
        "max_length": max_length,
        "max_prompt_length": prompt_limit(max_length, max_prompt_length),
    }
    arguments = {
        "snapshot": source.get("id", snapshot.name),
        "content_hash": source.get("content_hash"),
        "split": split,
        "rule": rule,
        "parameters": parameters,
        "model": model,
        "model_hash": content_hash(model, cache),
        **encoding,
        "condition": condition,
        # float32 on a GPU too: AdamW's steps are smaller than what bfloat16 can tell apart
        "dtype": "float32" if dtype == "auto" else models.dtype_name(dtype, device),
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "seed": seed,
    }
    _check(arguments)
    if condition is not None and (stored := [name for name in rules.columns(rule) if name.startswith("ref_")]):
        raise ValueError(
            f"{rules.label(rule)} reads {', '.join(stored)}, which are of prompts without the text of a class: take a "
            "rule without a reference, such as c_rlft or sft, or leave condition out"
        )
    if any(column.startswith("ref_") for column in rules.columns(rule)):
        check_encoding(source.get("score"), encoding)
    _claim(run, arguments)
    torch.manual_seed(seed)
    started = time.monotonic()
    rows = read_rows(
        read_split(snapshot, split),
        models.load_tokenizer(model, cache=cache),
        kind=rules.table(rule),
        filled=rules.columns(rule),
        soft=rules.honours_preference(rule) or rules.table(rule) == "unpaired",
        purpose=rules.label(rule),
        groups=rules.keeps_groups(rule),
        condition=condition,
        **encoding,
    )
    loaded = {"dtype": arguments["dtype"], "device": device, "max_length": max_length, "cache": cache}
    scores = rules.scores(rule)
    net, tokenizer = load_reward_model(model, head_seed=seed, **loaded) if scores else models.load(model, **loaded)
    layout = layout_of_scores(net) if scores else layout_of(net)
    policy = Policy(net, layout, token_budget or default_budget(net), scores)
    memory = preflight(net, policy.token_budget, training=True)
    say(in_words(memory), shown=progress)
    outcome = optimise(run, policy, rows, arguments, source.get("score"), checkpoint_every, progress)
    manifest = arguments | {
        "rows": len(rows),
        "dropped": rows.dropped,
        **outcome,
        "device": device,
        "layout": policy.layout,
        "token_budget": policy.token_budget,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "seconds": round(time.monotonic() - started, 3),
    }
    return _finish(run, net, tokenizer, manifest, cache)


def _check(arguments: dict[str, Any]) -> None:
    rules.check_parameters(arguments["rule"], arguments["parameters"])
    limits = {
        "epochs": arguments["epochs"] > 0,
        "batch_size": arguments["batch_size"] >= 1,
        "max_steps": arguments["max_steps"] is None or arguments["max_steps"] >= 1,
        "learning_rate": 0 < arguments["learning_rate"] < math.inf,
        "warmup": 0 <= arguments["warmup"] <= 1,
        "schedule": arguments["schedule"] in ("linear", "cosine", "constant"),
        "weight_decay": arguments["weight_decay"] >= 0,
        "max_grad_norm": arguments["max_grad_norm"] >= 0,
    }
    if wrong := [name for name, holds in limits.items() if not holds]:
        values = ", ".join(f"{name} {arguments[name]!r}" for name in wrong)
        raise ValueError(f"out of range: {values}; see the documentation of train")


def _claim(run: Path, arguments: dict[str, Any]) -> None:
    """Make the run's folder, or make sure that the checkpoints in it are the same run's."""
    run.mkdir(parents=True, exist_ok=True)
    said = run / "arguments.json"
    if said.is_file() and any((run / "checkpoints").glob("step-*")):
        before = json.loads(said.read_text())
        now = json.loads(json.dumps(arguments))
        # Where the same content and the same weights lie does not matter.
        if differing := [name for name in now if name not in ("snapshot", "model") and now[name] != before.get(name)]:
            changes = "; ".join(f"{name}: was {before.get(name)}, is {now[name]}" for name in differing)
            raise ValueError(f"{run} holds an unfinished run with other arguments ({changes}): remove that folder")
    files.write_text(said, json.dumps(arguments, indent=2))


def _finish(
    run: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any], cache: Path
) -> dict[str, Any]:
    shutil.rmtree(run / "model", ignore_errors=True)  # of an attempt that was killed here
    with files.whole_folder(run / "model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tell(folder, {key: manifest[key] for key in ("template", "max_length", "max_prompt_length", "condition")})
    manifest |= {"trained_model_hash": content_hash({"path": str(run / "model")}, cache)}
    files.write_text(run / "manifest.json", json.dumps(manifest, indent=2))
    (run / "_SUCCESS").touch()
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return manifest
