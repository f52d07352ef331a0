"""Commands over a spec: what it says, what would run, what runs."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_data.commands.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    Limit,
    Overrides,
    SpecPath,
    Variables,
    WorkspacePath,
    open_workspace,
    read_specs,
)
from rlhf_data.terminal import print_results, say, score_status_in_words, show_step

if TYPE_CHECKING:
    from rlhf_data.plan import Workspace
    from rlhf_data.spec import Spec


def check(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> int:
    """Say everything that is wrong with a spec."""
    from rlhf_data.spec import SpecError

    try:
        names = [s.name for s in read_specs(spec, var, overrides, workspace)]
    except SpecError as error:
        if as_json:
            print(json.dumps({"problems": [p._asdict() for p in error.problems]}))
        else:
            say(str(error))
            say(f"{len(error.problems)} problem{'s' * (len(error.problems) > 1)}")
        return 1
    print(json.dumps({"problems": [], "specs": names}) if as_json else f"fine: {', '.join(names)}")
    return 0


def plan(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> int:
    """Say what would run, and why.

    Exits with 0 where nothing would run and with 2 where something would.
    """
    from rlhf_data.plan import plan as make_plan

    pending, shown = False, []
    for one in read_specs(spec, var, overrides, workspace):
        waits = _waits_for(one, open_workspace(workspace), limit)
        planned = [] if waits else make_plan(one, open_workspace(workspace), limit=limit)
        pending |= bool(waits) or any(not p.cached for p in planned)
        shown.append({
            "spec": one.name,
            "waits_for": waits,
            "steps": [{"step": p.step.name, "runs": not p.cached, "why": p.why} for p in planned],
        })  # fmt: skip
    if as_json:
        print(json.dumps({"pending": pending, "specs": shown}))
    else:
        for one in shown:
            print(one["spec"] + (f": waits for {', '.join(one['waits_for'])}" if one["waits_for"] else ""))
            for step in one["steps"]:
                print(f"  {'run   ' if step['runs'] else 'cached'} {step['step']:<20} {step['why']}".rstrip())
    return 2 if pending else 0


def build(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Raw data → a published snapshot.

    Only what changed is computed; a build that was stopped goes on where it stood.
    """
    results = [_build(one, open_workspace(workspace), limit) for one in read_specs(spec, var, overrides, workspace)]
    print_results(results, as_json)


def run(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Build, train and evaluate."""
    from rlhf_data import engine

    results = []
    for one in read_specs(spec, var, overrides, workspace):
        space = open_workspace(workspace)
        result = _build(one, space, limit)
        if one.train is not None:
            folder = engine.train(one, space, limit=limit)
            result |= {"run": str(folder), "model": str(folder / "model")}
            result["run_report"] = str(folder / "report.html")
            result["evaluation"] = engine.evaluate(one, space, folder, limit=limit)
        results.append(result)
    print_results(results, as_json)


def score(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    status: Annotated[
        bool, typer.Option("--status", help="Only say what the store has and what is missing; no model is loaded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Precompute reference log-probs.

    They go to the score store; nothing is published.
    """
    from rlhf_data import engine

    results = []
    for one in read_specs(spec, var, overrides, workspace):
        if one.score is None:
            raise ValueError(f"{one.name} has no score section: add score: {{model: …}}")
        if status:
            references = engine.score_status(one, open_workspace(workspace), limit=limit, on_step=show_step)
            results.append({"spec": one.name, "references": references})
            continue
        recipe = engine.score(one, open_workspace(workspace), limit=limit, on_step=show_step)
        results.append({"spec": one.name, **recipe})
    if as_json:
        print(json.dumps(results))
    elif status:
        print("\n".join(line for result in results for line in score_status_in_words(result)))
    else:
        for result in results:
            counts = ", ".join(f"{n:,} {what}" for what, n in result["counts"].items())
            print(f"{result['spec']}: {counts}")


def train(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Train on the snapshot that is built.

    A run that was killed goes on where it stopped.
    """
    from rlhf_data import engine

    runs = {one.name: str(engine.train(one, open_workspace(workspace), limit=limit))
            for one in read_specs(spec, var, overrides, workspace)}  # fmt: skip
    print(json.dumps(runs) if as_json else "\n".join(runs.values()))


def evaluate(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Held-out figures, before and after training."""
    from rlhf_data import engine

    results = []
    for one in read_specs(spec, var, overrides, workspace):
        space = open_workspace(workspace)
        folder = engine.train(one, space, limit=limit)
        results.append({
            "spec": one.name,
            "run": str(folder),
            "evaluation": engine.evaluate(one, space, folder, limit=limit),
            "run_report": str(folder / "report.html"),
        })  # fmt: skip
    print_results(results, as_json)


def _waits_for(spec: "Spec", workspace: "Workspace", limit: int | None) -> list[str]:
    """The specs whose runs or snapshots must be there before this one can be planned."""
    from rlhf_data.spec.read import runs_wanted, snapshots_wanted

    built = {name for name, path in runs_wanted(spec).items() if path[0] not in ("train", "evaluate")}
    runs = [name for name in sorted(built) if not workspace.model_of(name, limit)]
    read = {name for name, path in snapshots_wanted(spec).items() if path[0] != "train"}
    snapshots = [name for name in sorted(read) if not workspace.snapshot_of(name, limit)]
    return list(dict.fromkeys([*runs, *snapshots]))


def _build(spec: "Spec", workspace: "Workspace", limit: int | None) -> dict[str, Any]:
    from rlhf_data import engine
    from rlhf_data.snapshot import Snapshot

    say(f"{spec.name}: {spec.about}" if spec.about else spec.name)
    built = engine.build(spec, workspace, limit=limit, on_step=show_step)
    opened = Snapshot(built.snapshot)
    return {
        "spec": spec.name,
        "snapshot": str(built.snapshot),
        "rows": opened.manifest["rows"],
        "quarantined": opened.manifest["quarantined"],
        "ran": built.ran,
        "accounting": [count.as_dict() for count in built.counts],
        "report": str(built.snapshot / "report.html"),
    }
