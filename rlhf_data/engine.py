"""The local engine: runs the steps of a plan, hands scorers to those that need one, trains and evaluates."""

import fcntl
import functools
import importlib
import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_data import files, snapshot
from rlhf_data.accounting import Count
from rlhf_data.plan import (
    Planned,
    Workspace,
    code_version,
    digest,
    function_version,
    in_use,
    is_done,
    limited,
    package_version,
    plan,
    remember,
    resolve_model,
    resolve_snapshot,
    written_by,
)
from rlhf_data.spec.sections import Spec

# Told of each step before and after it ran: (step, seconds or None while it runs, its counts).
OnStep = Callable[[Planned, float | None, list[Count]], None]


class Built(NamedTuple):
    """What a build gave.

    Attributes:
        snapshot: the published folder.
        counts: the accounting of all steps, cached ones too.
        ran: names of the steps that ran now.
    """

    snapshot: Path
    counts: list[Count]
    ran: list[str]


def build(spec: Spec, workspace: Workspace, *, limit: int | None = None, on_step: OnStep | None = None) -> Built:
    """Run what is not cached, down to publish."""
    with in_use(workspace):
        planned = plan(spec, workspace, limit=limit)
        ran = [p.step.name for p in planned if not p.cached]
        counts: list[Count] = []
        for step in planned:
            counts += run_step(step, planned, workspace, on_step=on_step)
        remember(spec, workspace, planned, limit)
    return Built(published(planned, workspace), counts, ran)


def run_step(
    planned: Planned, others: list[Planned], workspace: Workspace, *, on_step: OnStep | None = None
) -> list[Count]:
    """Run one step, if its result is not there yet, and return its accounting.

    The result appears whole: a step that is killed leaves nothing that a later run could take for a result.
    """
    folder = workspace.step(planned.fingerprint)
    if planned.cached or is_done(folder):  # another process may have run it since the plan was made
        counts = read_counts(folder)
        os.utime(folder / "_SUCCESS")  # it was used: `gc` spares it for a while
        _keep_latest(folder)
        if on_step:
            on_step(planned, 0.0, counts)
        return counts
    if on_step:
        on_step(planned, None, [])
    started = time.perf_counter()
    by_name = {p.step.name: p for p in others}
    inputs = {key: workspace.step(by_name[name].fingerprint) for key, name in planned.step.inputs.items()}
    for read_from in dict.fromkeys(inputs.values()):
        _check_undamaged(read_from)
    if folder.is_dir():  # damaged, or a pointer to a snapshot that was removed
        shutil.rmtree(folder)
    with files.whole_folder(folder) as out:
        counts = _function(planned, inputs, workspace)(out=out)
        (out / "step.json").write_text(json.dumps(_said(planned, inputs)))
        (out / "counts.json").write_text(json.dumps([count.as_dict() for count in counts]))
        written = {path.name: files.digest(path) for path in sorted(out.iterdir()) if path.is_file()}
        (out / "_SUCCESS").write_text(json.dumps(written))
    if on_step:
        on_step(planned, time.perf_counter() - started, counts)
    return counts


def _check_undamaged(step: Path) -> None:
    """ValueError where a step's tables are not what it wrote: Parquet alone would not notice a flipped byte."""
    for name, written in (written_by(step) or {}).items():
        if not (step / name).is_file() or files.digest(step / name) != written:
            raise ValueError(f"{step / name} is damaged: remove {step} and run again")


def _said(planned: Planned, inputs: dict[str, Path]) -> dict[str, Any]:
    """What a step's folder says of itself: which step it is, by which code, and which folders it was made from."""
    made_from = {key: folder.name for key, folder in inputs.items()}
    return {"step": planned.step.name, "code": code_version(planned.step.function), "inputs": made_from}


def read_counts(folder: Path) -> list[Count]:
    """The accounting of a step that has run."""
    return [Count(**count) for count in json.loads((folder / "counts.json").read_text())]


def published(planned: list[Planned], workspace: Workspace) -> Path:
    """The snapshot of a plan that has run."""
    return Path(json.loads((workspace.step(planned[-1].fingerprint) / "snapshot.json").read_text())["path"])


def score(
    spec: Spec, workspace: Workspace, *, limit: int | None = None, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Run the steps of a spec up to its scores, and publish nothing; what the scorer says of itself.

    Raises:
        ValueError: the spec scores what it writes itself.
    """
    with in_use(workspace):
        planned = _to_scores(spec, workspace, limit)
        for step in planned:
            run_step(step, planned, workspace, on_step=on_step)
        return json.loads((workspace.step(planned[-1].fingerprint) / "score.json").read_text())


def _to_scores(spec: Spec, workspace: Workspace, limit: int | None) -> list[Planned]:
    planned = plan(spec, workspace, limit=limit, until="score")
    if planned[-1].step.name != "score":
        raise ValueError(f"{spec.name} trains in rounds, and scores what it writes in each of them: run it")
    return planned


def score_status(
    spec: Spec, workspace: Workspace, *, limit: int | None = None, on_step: OnStep | None = None
) -> list[dict[str, Any]]:
    """What the score store has for a spec and what it lacks, of each reference; no model is loaded.

    The steps before `score` are run, where they are not cached.

    Returns:
        for each reference what `scoring.status.status` gives, and its `reference`, `ref` or `old`.
    """
    from rlhf_data import reference
    from rlhf_data.scoring.status import status

    with in_use(workspace):
        planned = _to_scores(spec, workspace, limit)
        for step in planned[:-1]:
            run_step(step, planned, workspace, on_step=on_step)
        last, by_name = planned[-1].step, {p.step.name: p for p in planned}
        inputs = {key: workspace.step(by_name[name].fingerprint) for key, name in last.inputs.items()}
        told = {key: last.parameters[key] for key in ("table", "partners", "seed")}
        with tempfile.TemporaryDirectory(dir=workspace.root, prefix=".", suffix=".tmp") as folder:
            requests = Path(folder) / "requests.parquet"
            reference.write_requests(reference.asked(inputs, **told), requests)
            recipes = {"ref": last.parameters["score"], **last.parameters["others"]}
            return [
                {"reference": name, **one}
                for name, recipe in recipes.items()
                for one in status(requests, store=workspace.scores, cache=workspace.root, **recipe)
            ]


def train(spec: Spec, workspace: Workspace, *, limit: int | None = None, progress: bool = True) -> Path:
    """Train on the spec's snapshot; the run's folder, at once where the same run is finished already.

    Raises:
        ValueError: the spec has no `train`, or its snapshot is not built.
    """
    if spec.train is None:
        raise ValueError(f"{spec.name} has no train section: add train: {{rule: dpo, model: …}}")
    if spec.train.rounds is not None:
        return _train_rounds(spec, workspace, limit, progress)
    from rlhf_data.scoring.models import device_name
    from rlhf_data.training import train as fit
    from rlhf_data.training.ranks import by_first, joined
    from rlhf_data.training.trackers import following

    data = current_snapshot(spec, workspace, limit)
    arguments = train_arguments(spec, workspace, limit)
    run = workspace.runs(limited(spec.name, limit)) / run_id(spec, data, workspace, limit)
    with ExitStack() as held:
        ranks, _ = held.enter_context(joined(device_name("auto")))
        if ranks.first:  # under torchrun all train and one writes
            held.enter_context(_alone(run))
            held.enter_context(following(run, spec.train.track, limited(spec.name, limit), arguments))
        fit(data.path, run, **arguments, cache=workspace.root, progress=progress)
        by_first(ranks, lambda: _name_latest(spec, run))  # before any rank goes on to a spec that reads this run
    return run


def _name_latest(spec: Spec, run: Path) -> None:
    """Draw a finished run's page, and let others find it by its spec's name."""
    if not (run / "report.html").is_file():
        _report_run(spec, run, None)
    files.write_text(run.parent / "latest", run.name + "\n")


def _train_rounds(spec: Spec, workspace: Workspace, limit: int | None, progress: bool) -> Path:
    """Train in rounds on what the policy itself writes; the folder of the whole, as `train` gives it."""
    from rlhf_data import rounds
    from rlhf_data.scoring.models import device_name
    from rlhf_data.training.ranks import agreed, by_first, joined
    from rlhf_data.training.trackers import following

    assert spec.train is not None and spec.train.rounds is not None
    data = current_snapshot(spec, workspace, limit)
    run = workspace.runs(limited(spec.name, limit)) / run_id(spec, data, workspace, limit)
    policy = start = resolve_model(spec.train.model, workspace, limit)
    rule = spec.train.rule
    arguments = train_arguments(spec, workspace, limit)
    with ExitStack() as held:
        ranks, _ = held.enter_context(joined(device_name("auto")))
        if ranks.first:  # under torchrun all write answers and train; one does the rest
            held.enter_context(_alone(run))
            held.enter_context(following(run, spec.train.track, limited(spec.name, limit), arguments))
        finished = by_first(ranks, lambda: (run / "_SUCCESS").is_file())
        done: list[rounds.Round] = []
        mine = (ranks.rank, ranks.world)
        for number in range(1, 1 if finished else spec.train.rounds.n + 1):
            one = rounds.round_spec(spec, number, policy, f"{spec.name}@{data.id}")
            if ranks.world > 1:
                agreed(ranks, lambda one=one: _write_share(one, workspace, limit, mine, progress and ranks.first))
            published_now = by_first(ranks, lambda one=one: str(build(one, workspace, limit=limit).snapshot))
            made = train(one, workspace, limit=limit, progress=progress)
            done.append(rounds.Round(snapshot.Snapshot(published_now), made))
            policy = {"path": str(made / "model")}

        def finish() -> None:
            if done:
                rated = [workspace.step(one.snapshot.manifest["steps"]["rate"]["fingerprint"]) for one in done]
                rounds.finish(run, {"snapshot": data.id, "model": start, "rule": rule}, done, rated)
            _name_latest(spec, run)

        by_first(ranks, finish)
    return run


def _write_share(spec: Spec, workspace: Workspace, limit: int | None, share: tuple[int, int], progress: bool) -> None:
    """Write this process's share of what a round's policy answers: the build then finds it written."""
    from rlhf_data import sampled

    with in_use(workspace):
        planned = plan(spec, workspace, limit=limit)[0]
        if planned.cached:
            return
        said = planned.step.parameters
        asked = {name: said[name] for name in ("files", "table", "rows", "skip", "seed", "limit")}
        sampled.ask(
            workspace.root, _generator({**said["generate"], "share": share, "progress": progress}, workspace), **asked
        )


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a second one waits, and then finds the run finished."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, however it ends
        yield


def train_arguments(spec: Spec, workspace: Workspace, limit: int | None = None) -> dict[str, Any]:
    """The trainer's arguments from the spec; how text becomes tokens is the scorer's, where there is one."""
    assert spec.train is not None
    elsewhere = {"model", "template", "max_length", "max_prompt_length", "condition", "blend", "rounds", "track"}
    section = spec.train.model_dump(include=set(type(spec.train).model_fields) - elsewhere)
    tokens = spec.score or spec.train
    return {
        **section,
        "seed": spec.seed,
        "model": resolve_model(spec.train.model, workspace, limit),
        "parameters": spec.train.parameters,
        "template": tokens.template or "chat",
        "max_length": tokens.max_length or 1024,
        "max_prompt_length": tokens.max_prompt_length,
        "blend": _blend(spec, workspace, limit),
        "condition": spec.train.condition.as_told if spec.train.condition else None,
    }


def _blend(spec: Spec, workspace: Workspace, limit: int | None) -> list[dict[str, Any]]:
    """The further tables of a run, each with the folder of its snapshot; those that count nothing are left out."""
    assert spec.train is not None
    return [
        {
            **part.model_dump(include={"rule", "coefficient", "batch_size"}),
            "snapshot": resolve_snapshot(part.snapshot, workspace, limit).path,
            "name": part.name or part.snapshot,
            "parameters": part.parameters,
        }
        for part in spec.train.blend or ()
        if part.coefficient
    ]


def run_id(spec: Spec, data: snapshot.Snapshot, workspace: Workspace, limit: int | None = None) -> str:
    """The name of a run: a digest of all that decides its result."""
    from rlhf_data import rules
    from rlhf_data.scoring.identity import content_hash, template_text, tokenizer_hash
    from rlhf_data.training.settings import SPEED

    assert spec.train is not None
    arguments = train_arguments(spec, workspace, limit)
    model = arguments.pop("model")
    arguments = {name: value for name, value in arguments.items() if name not in SPEED}
    arguments["parameters"] = rules.parameters(spec.train.rule) | arguments["parameters"]
    arguments["blend"] = [_blend_identity(part) for part in arguments["blend"]]
    tokens = [tokenizer_hash(model, workspace.root), template_text(arguments["template"])]
    code = package_version("rules", "scoring", "training") + "".join(
        map(function_version, [m for part in (spec.train, *(spec.train.blend or ())) for m in rules.modules(part.rule)])
    )
    score = snapshot.score_identity(data.manifest["score"])
    weights = content_hash(model, workspace.root)
    made_of = [data.manifest["content_hash"], score, weights, tokens, arguments, code]
    return digest([*made_of, *_of_rounds(spec, data, workspace, limit)])[:16]


def _of_rounds(spec: Spec, data: snapshot.Snapshot, workspace: Workspace, limit: int | None) -> list[Any]:
    """What else decides the result where a policy is trained on what it writes: how the first round is made."""
    from rlhf_data.rounds import round_spec

    if spec.train is None or spec.train.rounds is None:
        return []
    start = resolve_model(spec.train.model, workspace, limit)
    first = plan(round_spec(spec, 1, start, f"{spec.name}@{data.id}"), workspace, limit=limit)
    rounds = spec.train.rounds
    return [rounds.n, rounds.reference, first[-2].fingerprint]  # the last step is publish, which says where it goes


def _blend_identity(part: dict[str, Any]) -> dict[str, Any]:
    """What of a further table decides the result: the content of its snapshot, not where that lies."""
    from rlhf_data import rules

    manifest = snapshot.Snapshot(part["snapshot"]).manifest
    content = [manifest["content_hash"], snapshot.score_identity(manifest["score"])]
    return {**part, "snapshot": content, "parameters": rules.parameters(part["rule"]) | part["parameters"]}


def current_snapshot(spec: Spec, workspace: Workspace, limit: int | None = None) -> snapshot.Snapshot:
    """The snapshot that the spec's plan stands for.

    Raises:
        ValueError: it is not built, or the spec or its data changed since.
    """
    planned = plan(spec, workspace, limit=limit)
    pending = [p.step.name for p in planned if not p.cached]
    if pending:
        raise ValueError(f"{spec.name} is not built ({', '.join(pending)} would run): run `rlhf-data build` first")
    return snapshot.Snapshot(published(planned, workspace))


def evaluate(
    spec: Spec, workspace: Workspace, run: Path, *, limit: int | None = None, progress: bool = True
) -> dict[str, Any] | None:
    """Held-out figures before and after a run, written to its evaluation.json and report.html.

    Returns:
        What `training.compare` gives; None where the spec does not ask for it.
    """
    if spec.evaluate is None or spec.train is None:
        return None
    from rlhf_data.training import compare

    judge = spec.evaluate.reward_model and resolve_model(spec.evaluate.reward_model, workspace, limit)
    settings = spec.evaluate.model_dump() | {"code": _evaluation_code(spec.evaluate.verifier)}
    if judge:
        from rlhf_data.scoring.identity import content_hash

        settings["reward_model"] = content_hash(judge, workspace.root)
    done = run / "evaluation.json"
    if done.is_file() and (result := json.loads(done.read_text()))["settings"] == settings:
        return result
    arguments = train_arguments(spec, workspace, limit)
    result = compare(
        current_snapshot(spec, workspace, limit).path,
        before=arguments["model"],
        after={"path": str(run / "model")},
        **spec.evaluate.model_dump() | {"reward_model": judge},
        **{key: arguments[key] for key in ("template", "max_length", "max_prompt_length", "dtype", "token_budget")},
        seed=spec.seed,
        cache=workspace.root,
        progress=progress,
    )
    result["settings"] = settings
    _report_run(spec, run, result)
    files.write_text(done, json.dumps(result, indent=2, ensure_ascii=False))
    return result


def _evaluation_code(verifier: str | None) -> str:
    """Digest of the code that measures: ours, and the file of the verifier."""
    return package_version("scoring", "training") + function_version(verifier)


def report_run(run: Path) -> Path:
    """Write the page of a run that has ended, or that is still training, from what lies in its folder."""
    said = files.read_json(run / "about.json") or {}
    _write_page(run, said, files.read_json(run / "evaluation.json"))
    return run / "report.html"


def _report_run(spec: Spec, run: Path, evaluation: dict[str, Any] | None) -> None:
    said = {"name": spec.name, "about": spec.about}
    files.write_text(run / "about.json", json.dumps(said))
    _write_page(run, said, evaluation)


def _write_page(run: Path, said: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
    from rlhf_data.report import run_page

    told = files.read_json(run / "manifest.json") or files.read_json(run / "arguments.json") or {}
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]  # what follows the last newline is being written
    metrics = [json.loads(line) for line in lines]
    planned = [f"batches/{path.name}" for path in sorted((run / "batches").glob("*.parquet"))]  # from step to rows
    page = run_page({**said, **told, "batches": planned}, metrics, evaluation, (evaluation or {}).get("samples"))
    files.write_text(run / "report.html", page)


def _function(planned: Planned, inputs: dict[str, Path], workspace: Workspace) -> Callable[..., list[Count]]:
    """A step's function with its inputs and parameters, and with what only the engine can give it."""
    module, _, name = planned.step.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    parameters = dict(planned.step.parameters)
    wanted = inspect.signature(function).parameters
    if "inputs" in wanted:
        parameters["inputs"] = inputs
    if "scorer" in wanted:
        parameters["scorer"] = _scorer(parameters.pop("score"), workspace)
        parameters["others"] = {name: _scorer(other, workspace) for name, other in parameters["others"].items()}
    if "reward" in parameters:
        parameters["rewarder"] = _rewarder(parameters.pop("reward"), workspace)
    if "generator" in wanted:
        parameters["generator"] = _generator(parameters.pop("generate"), workspace)
    if "tokenizer" in parameters:
        parameters["count_tokens"] = _token_counter(parameters.pop("tokenizer"), workspace)
    if "chunks" in wanted:
        parameters["chunks"] = workspace.chunks
    if "counts" in wanted:
        steps = dict.fromkeys(inputs.values())
        parameters["counts"] = [count for folder in steps for count in read_counts(folder)]
    if "steps" in wanted:
        said = {folder.name: files.read_json(folder / "step.json") or {} for folder in inputs.values()}
        parameters["steps"] = {
            one["step"]: {"fingerprint": folder, "code": one["code"]} for folder, one in said.items() if one
        }
    return functools.partial(function, **parameters)  # type: ignore[return-value]


def _token_counter(model: dict[str, Any], workspace: Workspace) -> Callable[[Sequence[str]], list[int]]:
    """Texts → how many tokens each has, by the tokenizer of a model."""
    from rlhf_data.scoring.models import load_tokenizer

    tokenizer = load_tokenizer(model, cache=workspace.root)

    def count(texts: Sequence[str]) -> list[int]:
        batches = (texts[start : start + 10_000] for start in range(0, len(texts), 10_000))
        return [
            len(ids)
            for batch in batches
            for ids in tokenizer(list(batch), add_special_tokens=False, verbose=False)["input_ids"]
        ]

    return count


def _scorer(recipe: dict[str, Any], workspace: Workspace) -> Callable[[Path, Path], dict[str, Any]]:
    from rlhf_data.scoring import score

    return functools.partial(score, store=workspace.scores, cache=workspace.root, **recipe)


def _rewarder(recipe: dict[str, Any], workspace: Workspace) -> Callable[[Path, Path], dict[str, Any]]:
    from rlhf_data.scoring.rewards import reward

    return functools.partial(reward, store=workspace.scores, cache=workspace.root, **recipe)


def _generator(settings: dict[str, Any], workspace: Workspace) -> Callable[[Path], Path]:
    def written(prompts: Path) -> Path:
        import pyarrow.parquet as pq

        from rlhf_data.training.generate import samples

        rows = pq.read_table(prompts).to_pylist()
        return samples(workspace.samples, rows, **settings, cache=workspace.root)

    return written


def _keep_latest(step: Path) -> None:
    """A cached publish step stands for its snapshot: it is the latest again."""
    pointer = step / "snapshot.json"
    if pointer.is_file():
        snapshot.set_latest(Path(json.loads(pointer.read_text())["path"]))
