"""Commands over a workspace and what is installed: lay out, look after, make room, deploy."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_data.commands.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    SpecPath,
    Variables,
    WorkspacePath,
    name_values,
    open_workspace,
    read_specs,
)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to lay out pipelines/.")] = Path(),
    from_file: Annotated[Path | None, typer.Option("--from", help="A raw file: draft a spec that reads it.")] = None,
    json_schema: Annotated[bool, typer.Option(help="Print the JSON Schema of a spec, for editors, and stop.")] = False,
) -> None:
    """Lay out recipes, or draft a spec from a file."""
    if json_schema:
        from rlhf_data.spec import json_schema as schema

        print(json.dumps(schema(), indent=2))
        return
    from rlhf_data import scaffold

    if from_file is not None:
        out = scaffold.draft(from_file, folder / "pipelines")
        print(f"{out}\nlook it over, then: rlhf-data check {out}")
    else:
        made = scaffold.lay_out(folder / "pipelines")
        print("\n".join(map(str, made)) or f"{folder / 'pipelines'} has all recipes already")


def gc(
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Versions of each snapshot that stay; by default what publish.retain says."),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Days: what is younger stays, older versions go.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Also the scores of models that no snapshot and no run names.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Remove what no plan and no snapshot needs.

    Steps of earlier builds, versions beyond publish.retain, half-written files. The latest version of a snapshot stays
    always, as does what a run was trained on; scores stay unless they are asked for.
    """
    from rlhf_data.inspect import garbage, words

    parts = garbage.collect(open_workspace(workspace), keep=keep, older_than=older_than, scores=scores, dry=dry_run)
    print(json.dumps({"dry_run": dry_run, "removed": parts}) if as_json else "\n".join(words.sizes(parts, dry=dry_run)))


def compact(workspace: WorkspacePath = DEFAULT_WORKSPACE, as_json: AsJson = False) -> None:
    """Join the store's many small files into few.

    Nothing is lost when this is stopped, and others may score meanwhile.
    """
    from rlhf_data.scoring import store

    done = store.compact(open_workspace(workspace).scores)
    if as_json:
        print(json.dumps([{"folder": str(one.folder), "before": one.before, "now": one.now} for one in done]))
    else:
        lines = [f"{one.folder}: {one.before:,} files → {one.now:,}" for one in done]
        print("\n".join(lines) or "the store is empty")


def merge(
    folder: Annotated[Path, typer.Argument(help="The folder scores of another workspace, or a copy of it.")],
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Take over the scores of another machine's store.

    What both have stays as it is here; where they disagree by more than rounding, nothing is taken over.
    """
    from rlhf_data.scoring import store

    done = store.merge(open_workspace(workspace).scores, folder)
    if as_json:
        keys = ("folder", "recipe", "added", "known")
        print(json.dumps([{**dict(zip(keys, one, strict=True)), "folder": str(one.folder)} for one in done]))
    else:
        for one in done:
            print(f"{one.folder}: {one.added:,} taken over, {one.known:,} here already")


def doctor(workspace: WorkspacePath = DEFAULT_WORKSPACE, as_json: AsJson = False) -> None:
    """Say what is installed and what disk is used."""
    from rlhf_data import installation

    facts = installation.facts(workspace)
    if as_json:
        print(json.dumps(facts))
    else:
        print("\n".join(installation.in_words(facts)))


def deploy(
    spec: SpecPath,
    pool: Annotated[str, typer.Option(help="A Prefect work pool of type process.")] = "rlhf-data",
    var: Variables = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> int:
    """Register a spec's flow with a Prefect server.

    Runs build, or train where the spec has a train section, on the spec's schedule. PREFECT_API_URL names the server.
    """
    import importlib.util
    import subprocess

    from rlhf_data import tables

    if importlib.util.find_spec("prefect") is None:
        raise ImportError(name="prefect")

    specs = read_specs(spec, var, None, workspace)
    flow = "train" if any(one.train is not None for one in specs) else "build"
    schedules = [one.schedule for one in specs if one.schedule is not None]
    if len(schedules) > 1:
        raise ValueError(f"{len(schedules)} specs of {spec} have a schedule: deploy them one by one")
    parameters = {
        "spec": str(spec.resolve()),
        "workspace": str(workspace.resolve()),
        "variables": name_values(var, "--var"),
    }
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", f"{tables.folder('flows') / flow}.py:{flow}"]
    command += ["--name", spec.stem, "--pool", pool, "--params", json.dumps(parameters)]
    for schedule in schedules:
        command += ["--cron", schedule.cron, "--timezone", schedule.timezone]
    return 1 if subprocess.run(command, check=False).returncode else 0
