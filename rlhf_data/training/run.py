"""Training with any rule from a snapshot; a killed run goes on exactly where it stood."""

import json
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_data import files, rules
from rlhf_data.scoring import models
from rlhf_data.scoring.identity import content_hash, parts, tell, template_hash
from rlhf_data.scoring.progress import say
from rlhf_data.training import adapters, averaging, blend
from rlhf_data.training.batches import Rows, manifest_of, rows_of
from rlhf_data.training.beside import Beside
from rlhf_data.training.gate import check_encoding, check_tokens, first_rows
from rlhf_data.training.loop import optimise
from rlhf_data.training.policy import deterministically, prepare
from rlhf_data.training.ranks import Ranks, agreed, by_first, joined
from rlhf_data.training.settings import Settings
from rlhf_data.training.sharding import plain, whole_state
from rlhf_data.training.step import Policy


def train(snapshot: Path, run: Path, *, cache: Path, progress: bool = True, **options: Any) -> dict[str, Any]:
    """Train a model on a snapshot with a rule, by AdamW; without dropout but what an adapter asks for.

    A run that has finished returns its manifest at once; one that was killed resumes from its last checkpoint and, on
    a CPU, ends with the same bits as if it had not been.

    Args:
        snapshot: folder of a published snapshot.
        run: folder to write: metrics.jsonl, batches/, checkpoints/, then model/, manifest.json and _SUCCESS.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr shows loss and tokens per second.
        options: fields of `Settings`; `rule` and `model` must be there.

    Returns:
        The run's manifest: everything to repeat it, and what came out.

    Raises:
        ValueError: wrong options; a snapshot that does not serve the rule; references that are not of these tokens;
            a run folder of another run; too little memory; a loss or gradient that is no number.
    """
    if (run / "_SUCCESS").is_file():
        return json.loads((run / "manifest.json").read_text())
    settings = Settings(**options)
    with joined(models.device_name(settings.device)) as (ranks, device), deterministically(settings.deterministic):
        return _train(snapshot, run, settings, ranks, device, cache, progress and ranks.first)


def _train(
    snapshot: Path, run: Path, settings: Settings, ranks: Ranks, device: str, cache: Path, progress: bool
) -> dict[str, Any]:
    recipe = manifest_of(snapshot).get("score")
    if any(column.startswith(("ref_", "old_")) for column in _stored(settings, rules.columns(settings.rule))):
        check_encoding(recipe, settings.encoding)
        check_tokens(first_rows(snapshot, settings.split), recipe, settings.model, settings.encoding, cache)
    # The first rank alone digests files and dequantises a model: the others find both in the cache.
    arguments = by_first(ranks, lambda: _arguments(snapshot, settings, device, cache))
    by_first(ranks, lambda: _claim(run, arguments))
    by_first(ranks, lambda: models.plain_folder(parts(settings.model)[0], cache).name)
    started = time.monotonic()
    if ranks.world > 1:  # and the token ids
        by_first(ranks, lambda: len(_rows(snapshot, settings, cache)))
        by_first(ranks, lambda: len(_parts(settings, arguments["blend"], cache)))
    rows = agreed(ranks, lambda: _rows(snapshot, settings, cache))
    further = agreed(ranks, lambda: _parts(settings, arguments["blend"], cache))
    policy, tokenizer, memory = prepare(settings, ranks, device, cache, progress)
    beside = agreed(ranks, lambda: _beside(settings, policy, further, recipe, progress))
    outcome = optimise(run, policy, rows, arguments, recipe, settings.checkpoint_every, progress, beside)
    manifest = arguments | {
        "rows": len(rows),
        "dropped": rows.dropped,
        "blended": {part.name: {"rows": len(part.rows), "dropped": part.rows.dropped} for part in beside.parts},
        **outcome,
        "device": device.partition(":")[0],
        "ranks": ranks.world,
        "sharded": policy.sharded,
        "layout": policy.layout,
        "trained_parameters": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        "token_budget": policy.token_budget,
        "memory": memory,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "seconds": round(time.monotonic() - started, 3),
    }
    weights = whole_state(policy.model, kept=ranks.first) if policy.sharded else {}

    def finish() -> dict[str, Any]:
        model, adapter = policy.model, policy.adapter
        if policy.sharded:
            model, adapter = plain(model, weights, adapter)
        if adapter is not None:
            return _finish_adapter(run, adapter, tokenizer, manifest, cache)
        return _finish(run, model, tokenizer, manifest, cache)

    return by_first(ranks, finish)


def _arguments(snapshot: Path, settings: Settings, device: str, cache: Path) -> dict[str, Any]:
    """All that decides a run's result: what a run that resumes must have in common with the one that was killed."""
    source = manifest_of(snapshot)
    return {
        "snapshot": source.get("id", snapshot.name),
        "content_hash": source.get("content_hash"),
        "model_hash": content_hash(settings.model, cache),
        "template_hash": template_hash(settings.model, settings.template, cache),
        **settings.deciding(device),
    }


def _rows(snapshot: Path, settings: Settings, cache: Path) -> Rows:
    filled = _stored(settings, rules.columns(settings.rule))
    told = {"model": settings.model, "cache": cache, "condition": settings.condition, **settings.encoding}
    return rows_of(snapshot, settings.split, settings.rule, filled=filled, **told)


def _parts(settings: Settings, identities: list[dict[str, Any]], cache: Path) -> list[blend.Part]:
    return blend.read(
        settings.blend or (),
        identities,
        settings.split,
        model=settings.model,
        cache=cache,
        seed=settings.seed,
        encoding=settings.encoding,
        stored=lambda columns: _stored(settings, columns),
    )


def _stored(settings: Settings, columns: Sequence[str]) -> Sequence[str]:
    """Of the columns that a rule reads, those that the snapshot must hold."""
    return columns if settings.reference is None else averaging.stored_columns(columns)


def _beside(
    settings: Settings, policy: Policy, parts: list[blend.Part], recipe: dict[str, Any] | None, progress: bool
) -> Beside:
    """The moving reference and the further tables that the settings ask for."""
    if settings.reference is None:
        return Beside(parts=parts)
    if recipe is not None:
        say("the reference moves with the policy: stored scores are not valid any more, and not read", shown=progress)
    said = averaging.moving(settings.reference)
    return Beside(averaging.follow(policy.model, **said, adapted=policy.adapter is not None), parts)


def _claim(run: Path, arguments: dict[str, Any]) -> None:
    """Make the run's folder, or make sure that the checkpoints in it are the same run's."""
    run.mkdir(parents=True, exist_ok=True)
    said = run / "arguments.json"
    if not any((run / "checkpoints").glob("step-*")):
        shutil.rmtree(run / "batches", ignore_errors=True)  # of an attempt that left nothing else
    if said.is_file() and any((run / "checkpoints").glob("step-*")):
        before = json.loads(said.read_text())
        now = json.loads(json.dumps(arguments))
        # Where the same content and the same weights lie does not matter.
        if differing := [name for name in now if name not in ("snapshot", "model") and now[name] != before.get(name)]:
            changes = "; ".join(f"{name}: was {before.get(name)}, is {now[name]}" for name in differing)
            raise ValueError(f"{run} holds an unfinished run with other arguments ({changes}): remove that folder")
    files.write_text(said, json.dumps(arguments, indent=2))


def _finish_adapter(
    run: Path, adapter: Any, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any], cache: Path
) -> dict[str, Any]:
    """Write the adapter by itself, and the model with it merged."""
    shutil.rmtree(run / "adapter", ignore_errors=True)  # of an attempt that was killed here
    with files.whole_folder(run / "adapter") as folder:
        adapters.save(adapter, folder)
        tell(folder, {key: manifest[key] for key in ("template", "max_length", "max_prompt_length", "condition")})
    adapted = {**manifest["model"], "adapter": str(run / "adapter")}
    manifest |= {"adapted_model_hash": content_hash(adapted, cache)}
    return _finish(run, adapters.merge(adapter), tokenizer, manifest, cache)


def _finish(
    run: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any], cache: Path
) -> dict[str, Any]:
    shutil.rmtree(run / "model", ignore_errors=True)  # of an attempt that was killed here
    with files.whole_folder(run / "model", lasting=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tell(folder, {key: manifest[key] for key in ("template", "max_length", "max_prompt_length", "condition")})
    manifest |= {"trained_model_hash": content_hash({"path": str(run / "model")}, cache)}
    files.write_text(run / "manifest.json", json.dumps(manifest, indent=2))
    (run / "_SUCCESS").touch()
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return manifest
