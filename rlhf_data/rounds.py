"""Online rounds as specs: what a policy writes in one is rated, shaped, scored and trained on like any other data.

Round k of a spec NAME is the spec NAME-round-k, whose source is {generate: …} by the policy of the round before; it is
built, published and trained by what builds, publishes and trains any spec. So a round that is cached is not done again,
and what was killed goes on within the round it stood in.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rlhf_data import files, tables
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec.sections import (
    Expect,
    Generate,
    Prompts,
    Publish,
    Score,
    Source,
    Spec,
    Split,
    Weigh,
    Weight,
)

SOURCE = "samples"  # what a round's only source is called


class Round(NamedTuple):
    """A round that is finished: its snapshot and the folder of its run."""

    snapshot: Snapshot
    run: Path


def round_spec(spec: Spec, number: int, policy: dict[str, Any], prompts: str) -> Spec:
    """The spec of one round.

    An answer that was written more than once is one row, which weighs as often as it was written. Everything is in the
    train split: prompts are of the train split, and what is held out stays so.

    Args:
        spec: has `train.rounds`.
        number: from 1.
        policy: the model that writes, and that training goes on from.
        prompts: the snapshot whose prompts are answered, as NAME@VERSION.
    """
    assert spec.train is not None and spec.train.rounds is not None
    rounds, tokens = spec.train.rounds, spec.score or spec.train
    generate = Generate(
        policy=policy,
        prompts=Prompts(snapshot=prompts, rows=rounds.prompts, skip=(number - 1) * (rounds.prompts or 0)),
        n=rounds.samples,
        temperature=rounds.temperature,
        max_new_tokens=rounds.max_new_tokens,
        unfinished=rounds.unfinished,
        template=tokens.template or "chat",
        max_prompt_length=tokens.max_prompt_length or (tokens.max_length or 1024) * 3 // 4,
    )
    return spec.model_copy(
        update={
            "name": f"{spec.name}-round-{number}",
            "about": f"Round {number} of {rounds.n} of {spec.name}: what its policy wrote.",
            "sources": {SOURCE: Source(generate=generate)},
            "clean": [],
            "rate": rounds.rate,
            "split": Split(),
            "weigh": Weigh(weight=Weight(row="votes")) if spec.shape.to == "unpaired" else Weigh(),
            "score": spec.score and _scored(spec.score, policy, rounds.reference),
            "expect": Expect(),
            "publish": Publish(to=f"{spec.publish.to.rstrip('/')}-round-{number}", retain=spec.publish.retain),
            "train": spec.train.model_copy(update={"rounds": None, "model": policy, "track": []}),
            "evaluate": None,
            "schedule": None,
        }
    )


def _scored(score: Score, policy: dict[str, Any], reference: str) -> Score:
    """How a round is scored: the policy that writes is the reference `old` where there is one, or else the reference.

    Args:
        score: the spec's section.
        policy: the model that writes.
        reference: "behaviour", or "fixed" to leave the reference what it is.
    """
    if "old" in (score.references or {}):
        old = score.references["old"].model_copy(update={"model": policy})
        return score.model_copy(update={"references": {**score.references, "old": old}})
    return score.model_copy(update={"model": policy}) if reference == "behaviour" else score


def finish(run: Path, manifest: dict[str, Any], rounds: list[Round], rated: list[Path]) -> None:
    """Make one run of several rounds: metrics and batches one after the other, the last policy, a line for each round.

    An adapter is that of the last round: it is on top of the round's own start, `adapter_base` in the manifest.

    Args:
        run: the folder; gets metrics.jsonl, batches/, model/ (and adapter/), manifest.json, and _SUCCESS last.
        manifest: what else is known of the whole: name, model, snapshot, …
        rounds: in their order.
        rated: of each round, what its step `rate` wrote.
    """
    steps, lines, told = 0, [], []
    for number, (one, answers) in enumerate(zip(rounds, rated, strict=True), start=1):
        own = json.loads((one.run / "manifest.json").read_text())
        for text in (one.run / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            lines.append({**line, "step": line["step"] + steps, "round": number})
        _renumber(one.run / "batches", run / "batches", number, ran=own["steps"], before=steps)
        steps += own["steps"]
        told.append({"round": number, **_figures(answers), **_said(one, own)})
    last = json.loads((rounds[-1].run / "manifest.json").read_text())
    files.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for folder in ("model", "adapter"):
        if (rounds[-1].run / folder).is_dir() and not (run / folder).is_dir():
            with files.whole_folder(run / folder) as beside:
                shutil.copytree(rounds[-1].run / folder, beside, copy_function=_share, dirs_exist_ok=True)
    base = {"adapter_base": last["model"]} if (run / "adapter").is_dir() else {}
    seconds = sum(one["seconds"] for one in told)
    whole = {**last, **base, **manifest, "steps": steps, "seconds": seconds, "rounds": told}
    files.write_text(run / "manifest.json", json.dumps(whole, indent=2))
    (run / "_SUCCESS").touch()


def _renumber(planned: Path, to: Path, number: int, *, ran: int, before: int) -> None:
    """The tables of a round's batches, of the `ran` steps that it took, with its steps counted from `before` on."""
    for path in sorted(planned.glob("*.parquet")):
        taken = pl.read_parquet(path).filter(pl.col("step") <= ran).with_columns(pl.col("step") + before)
        to.mkdir(exist_ok=True)
        with files.whole_file(to / f"round-{number:05d}-{path.name}") as beside:
            taken.write_parquet(beside)


def _said(one: Round, own: dict[str, Any]) -> dict[str, Any]:
    kept = {key: own[key] for key in ("rows", "steps", "seconds")}
    return {**kept, "loss": own["last"].get("loss"), "snapshot": str(one.snapshot.path), "run": str(one.run)}


def _figures(rated: Path) -> dict[str, Any]:
    """What a round's policy wrote: prompts, answers, how many of them differ, and their mean reward."""
    answers = tables.read(rated / "rated.parquet", "rated", ["prompt_row", "reward", "votes"])
    written = int(answers["votes"].sum())
    reward = float((answers["reward"] * answers["votes"]).sum()) / written if written else None
    prompts = answers["prompt_row"].n_unique()
    return {"prompts": prompts, "answers": written, "distinct": answers.height, "reward": reward}


def _share(path: str, to: str) -> None:
    """The same file under another name; a copy where the disk cannot do that."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
