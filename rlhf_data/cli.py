"""The command line: parses, calls the library, prints. Nothing heavy is imported before it is needed."""

import errno
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlhf_data.accounting import Count
    from rlhf_data.plan import Planned, Workspace
    from rlhf_data.spec import Spec

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Raw feedback → validated, weighted preference tables → reference log-probs → a trained policy.",
)

SpecPath = Annotated[Path, typer.Argument(help="A spec, or a folder of specs, run in the order of their references.")]
WorkspacePath = Annotated[Path, typer.Option("--workspace", "-w", help="Cache, scores and runs live here.")]
Variables = Annotated[list[str] | None, typer.Option("--var", help="NAME=VALUE for ${NAME} in the spec.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the spec, such as train.beta=0.2.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N records of each raw file: a quick look.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DEFAULT_WORKSPACE = Path(".rlhf")
STOPPED = 130  # the exit code of Ctrl-C


def main() -> None:
    """Run the command line; every error is a message and exit code 1."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """One command; its exit code: 0 done, 1 any error, 2 changes pending (`plan` only)."""
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
        if code == STOPPED:  # typer has taken Ctrl-C for an exit code
            raise KeyboardInterrupt
        return code
    except typer.TyperException as error:
        _say(f"{error.format_message()}\nsee: rlhf-data --help")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped; what was finished is kept, and the same command goes on from there")
        return STOPPED
    except ImportError as error:
        _say(_missing_extra(error))
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        _say(_message(error))
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("polars"):  # polars, not imported here, has errors of its own
            raise
        _say(_message(error))
        return 1


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to lay out pipelines/.")] = Path(),
    from_file: Annotated[Path | None, typer.Option("--from", help="A raw file: draft a spec that reads it.")] = None,
    json_schema: Annotated[bool, typer.Option(help="Print the JSON Schema of a spec, for editors, and stop.")] = False,
) -> None:
    """Lay out recipes, or draft a spec from a file."""
    if json_schema:
        from rlhf_data.spec import json_schema as schema

        print(json.dumps(schema(), indent=2))
    elif from_file is not None:
        from rlhf_data.sources.sniff import sniff

        out = folder / "pipelines" / f"{from_file.name.split('.')[0].lower()}.yaml"
        _create(out, sniff(from_file))
        print(f"{out}\n_look it over, then:_ rlhf-data check {out}".replace("_", ""))
    else:
        from rlhf_data import tables

        for name in _lay_out(tables.folder("pipelines"), folder / "pipelines"):
            print(name)


@app.command()
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
        names = [s.name for s in _specs(spec, var, overrides, workspace)]
    except SpecError as error:
        if as_json:
            print(json.dumps({"problems": [p._asdict() for p in error.problems]}))
        else:
            _say(str(error))
            _say(f"{len(error.problems)} problem{'s' * (len(error.problems) > 1)}")
        return 1
    print(json.dumps({"problems": [], "specs": names}) if as_json else f"fine: {', '.join(names)}")
    return 0


@app.command()
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
    for one in _specs(spec, var, overrides, workspace):
        waits = _waits_for(one, _workspace(workspace))
        planned = [] if waits else make_plan(one, _workspace(workspace), limit=limit)
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
            print(one["spec"] + (f": waits for the run of {', '.join(one['waits_for'])}" if one["waits_for"] else ""))
            for step in one["steps"]:
                print(f"  {'run   ' if step['runs'] else 'cached'} {step['step']:<20} {step['why']}".rstrip())
    return 2 if pending else 0


@app.command()
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
    results = [_build(one, _workspace(workspace), limit) for one in _specs(spec, var, overrides, workspace)]
    _print(results, as_json)


@app.command()
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
    for one in _specs(spec, var, overrides, workspace):
        space = _workspace(workspace)
        result = _build(one, space, limit)
        if one.train is not None:
            folder = engine.train(one, space, limit=limit)
            result |= {"run": str(folder), "model": str(folder / "model")}
            result["run_report"] = str(folder / "report.html")
            result["evaluation"] = engine.evaluate(one, space, folder, limit=limit)
        results.append(result)
    _print(results, as_json)


@app.command()
def score(
    spec: SpecPath,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Precompute reference log-probs.

    They go to the score store; nothing is published.
    """
    from rlhf_data import engine
    from rlhf_data.plan import plan as make_plan

    results = []
    for one in _specs(spec, var, overrides, workspace):
        if one.score is None:
            raise ValueError(f"{one.name} has no score section: add score: {{model: …}}")
        planned = make_plan(one, _workspace(workspace), limit=limit, until="score")
        for step in planned:
            engine.run_step(step, planned, _workspace(workspace), on_step=_show_step)
        recipe = json.loads((_workspace(workspace).step(planned[-1].fingerprint) / "score.json").read_text())
        results.append({"spec": one.name, **recipe})
    if as_json:
        print(json.dumps(results))
    else:
        for result in results:
            counts = ", ".join(f"{n:,} {what}" for what, n in result["counts"].items())
            print(f"{result['spec']}: {counts}")


@app.command()
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

    runs = {one.name: str(engine.train(one, _workspace(workspace), limit=limit))
            for one in _specs(spec, var, overrides, workspace)}  # fmt: skip
    print(json.dumps(runs) if as_json else "\n".join(runs.values()))


@app.command()
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
    for one in _specs(spec, var, overrides, workspace):
        space = _workspace(workspace)
        folder = engine.train(one, space, limit=limit)
        results.append({
            "spec": one.name,
            "run": str(folder),
            "evaluation": engine.evaluate(one, space, folder, limit=limit),
            "run_report": str(folder / "report.html"),
        })  # fmt: skip
    _print(results, as_json)


@app.command()
def rules(as_json: AsJson = False) -> None:
    """List the weighting rules."""
    from rlhf_data import rules as known

    listed = [
        {
            "rule": name,
            "table": known.table(name),
            "needs": list(known.needs(name)),
            "parameters": known.parameters(name),
            "about": (known.RULES[name].__doc__ or "").strip().splitlines()[0],
        }
        for name in known.RULES
    ]
    if as_json:
        print(json.dumps(listed))
        return
    width = max(len(rule["rule"]) for rule in listed)
    for rule in listed:
        parameters = ", ".join(f"{key}={value}" for key, value in rule["parameters"].items())
        print(f"{rule['rule']:<{width}} {rule['table']:<9} {rule['about']}")
        print(f"{'':<{width}} needs {', '.join(rule['needs'])}; {parameters or 'no parameters'}")


@app.command()
def show(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot, or the folder of its versions.")],
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    split: Annotated[str | None, typer.Option(help="Of which split.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot: accounting and some rows."""
    from rlhf_data.snapshot import Snapshot

    opened = Snapshot(snapshot)
    head = opened.scan(split).head(rows).collect()
    if as_json:
        print(json.dumps({"manifest": opened.manifest, "rows": head.to_dicts()}, ensure_ascii=False))
        return
    print(f"{opened.path}\n{opened.manifest['table']}, {_rows(opened.manifest['rows'])}")
    _print_accounting(opened.manifest["accounting"])
    for row in head.iter_rows(named=True):
        print()
        for column, value in row.items():
            if value is not None:
                print(f"  {column:<18} {_short(value)}")


@app.command()
def quarantine(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot, or the folder of its versions.")],
    code: Annotated[str | None, typer.Option(help="Only rows refused by this code.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows of each code to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show what was refused, by code."""
    import polars as pl

    from rlhf_data import tables
    from rlhf_data.snapshot import resolve

    table = tables.read(resolve(snapshot) / "quarantine" / "quarantine.parquet", "quarantine")
    table = table if code is None else table.filter(pl.col("code") == code)
    if as_json:
        print(json.dumps(table.to_dicts(), ensure_ascii=False))
        return
    for (reason,), refused in table.sort("code").group_by("code", maintain_order=True):
        print(f"{refused.height:>7,}  {reason}")
        for row in refused.head(rows).iter_rows(named=True):
            print(f"         {', '.join(row['raw_ref'])}  {row['detail'] or ''}\n           {_short(row['row'])}")
    print(f"{table.height:>7,}  in all" if table.height else "nothing was refused")


@app.command()
def report(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot, or the folder of its versions.")],
) -> None:
    """Print where a snapshot's HTML report is."""
    from rlhf_data.snapshot import resolve

    print(resolve(snapshot) / "report.html")


@app.command()
def doctor(workspace: WorkspacePath = DEFAULT_WORKSPACE, as_json: AsJson = False) -> None:
    """Say what is installed and what disk is used."""
    import os
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("rlhf_data", "polars", "duckdb", "pandera", "datasets", "torch", "transformers", "prefect", "fastapi")
    parts = {p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file())
             for p in sorted(workspace.iterdir()) if p.is_dir()} if workspace.is_dir() else {}  # fmt: skip
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "packages": {package: installed(package) for package in packages},
        "cores": os.cpu_count(),
        "free_bytes": shutil.disk_usage(Path.cwd()).free,
        "workspace": str(workspace.resolve()),
        "workspace_bytes": parts,
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"python {facts['python']}, {facts['cores']} cores, {facts['free_bytes'] / 1e9:.1f} GB free here")
    for package, found in facts["packages"].items():
        extra = {"torch": "train", "transformers": "train", "prefect": "flows", "fastapi": "flows"}.get(package)
        print(f"  {package:<13} {found or f'not installed: pip install rlhf_data[{extra}]'}")
    print(f"workspace {facts['workspace']}")
    for name, size in parts.items():
        print(f"  {name:<13} {size / 1e6:,.1f} MB")


def _specs(place: Path, variables: list[str] | None, overrides: list[str] | None, workspace: Path) -> Iterable["Spec"]:
    """The specs of a place, read and checked whole before the first of them runs."""
    from rlhf_data.spec import check as check_all
    from rlhf_data.spec import read_all

    specs = read_all(place, variables=_pairs(variables, "--var"), overrides=_pairs(overrides, "--set"))
    check_all(specs, _workspace(workspace))
    return [one for one, _ in specs.values()]


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    wrong = [text for text in texts or [] if "=" not in text]
    if wrong:
        raise typer.BadParameter(f"{option} {wrong[0]}: write NAME=VALUE")
    return dict(text.split("=", 1) for text in texts or [])


def _workspace(root: Path) -> "Workspace":
    from rlhf_data.plan import Workspace

    return Workspace(root)


def _waits_for(spec: "Spec", workspace: "Workspace") -> list[str]:
    if spec.score is None or "run" not in spec.score.model:
        return []
    name = spec.score.model["run"]
    return [] if workspace.model_of(name) else [name]


def _build(spec: "Spec", workspace: "Workspace", limit: int | None) -> dict[str, Any]:
    from rlhf_data import engine
    from rlhf_data.snapshot import Snapshot

    _say(f"{spec.name}: {spec.about}" if spec.about else spec.name)
    built = engine.build(spec, workspace, limit=limit, on_step=_show_step)
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


def _show_step(planned: "Planned", seconds: float | None, counts: list["Count"]) -> None:
    if seconds is None:
        if sys.stderr.isatty():
            print(f"  … {planned.step.name}", end="\r", file=sys.stderr, flush=True)
        return
    said = "; ".join(f"{c.rows_in:,} {c.unit} → {c.out:,}" for c in counts)
    _say(f"  ✓ {planned.step.name:<16} {'cached' if planned.cached else f'{seconds:.1f} s':>8}  {said}".rstrip())


def _print(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    for result in results:
        print(f"\n{result['spec']}")
        if "snapshot" in result:
            held = f"{_rows(result['rows'])}; {result['quarantined']:,} in quarantine"
            print(f"  snapshot    {result['snapshot']}  ({held})")
            print(f"  report      {result['report']}")
        if "model" in result:
            print(f"  policy      {result['model']}")
        if "run_report" in result:
            print(f"  run report  {result['run_report']}")
        if result.get("evaluation"):
            from rlhf_data.report.evaluation import text_lines

            for line in text_lines(result["evaluation"]):
                print(f"  {line}")


def _print_accounting(accounting: list[dict[str, Any]]) -> None:
    for count in accounting:
        print(f"  {count['step']:<16} {count['rows_in']:>10,} {count['unit']} → {count['out']:,}")
        for kind in ("merged", "quarantined", "filtered"):
            for reason, n in count[kind].items():
                print(f"  {'':<16} {n:>10,} {kind}: {reason}")


def _rows(rows: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in rows.items()) or "no rows"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text[:160].split())
    return line + (" …" if len(text) > 160 else "")


def _create(path: Path, text: str) -> None:
    if path.exists():
        raise ValueError(f"{path} exists: remove it, or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _lay_out(source: Any, target: Path) -> list[Path]:
    """Copy the recipes; files that are there already are left alone."""
    made = []
    for entry in sorted(source.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            made += _lay_out(entry, target / entry.name)
        elif entry.name.endswith(".yaml") and not (target / entry.name).exists():
            _create(target / entry.name, entry.read_text(encoding="utf-8"))
            made.append(target / entry.name)
    return made


def _message(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or "os error 28" in str(error):  # as polars tells it
        where = getattr(error, "filename", None) or "while writing"
        return f"no space left on the disk ({where}); nothing was published: make room, then run the same command again"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def _missing_extra(error: ImportError) -> str:
    extra = {"torch": "train", "transformers": "train", "gguf": "train", "accelerate": "train", "prefect": "flows"}
    name = (error.name or "").split(".")[0]
    if name not in extra:
        return f"cannot import {error.name or error}: {error}"
    return f"this command needs {name}: pip install 'rlhf_data[{extra[name]}]'"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
