"""The command line: parses, calls the library, prints. Nothing heavy is imported before it is needed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_data.terminal import (
    message,
    missing_extra,
    print_results,
    rows_in_words,
    say,
    score_status_in_words,
    short,
    show_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from rlhf_data.plan import Workspace
    from rlhf_data.snapshot import Snapshot
    from rlhf_data.spec import Spec
    from rlhf_data.whatif import Weighed

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Raw feedback → validated, weighted preference tables → reference log-probs → a trained policy.",
)

scores_app = typer.Typer(rich_markup_mode=None, help="Look after the score store: compact it, merge another into it.")
app.add_typer(scores_app, name="scores")

SpecPath = Annotated[Path, typer.Argument(help="A spec, or a folder of specs, run in the order of their references.")]
WorkspacePath = Annotated[Path, typer.Option("--workspace", "-w", help="Cache, scores and runs live here.")]
Variables = Annotated[list[str] | None, typer.Option("--var", help="NAME=VALUE for ${NAME} in the spec.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the spec, such as train.beta=0.2.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N records of each raw file: a quick look.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RuleList = Annotated[
    str | None, typer.Option("--rules", help="RULE or RULE:PARAMETER=VALUE:…, with commas between; all: all that fit.")
]
PolicyTable = Annotated[Path | None, typer.Option("--policy", help="Parquet of completion_id, logps (nats, summed).")]
PolicyModel = Annotated[str | None, typer.Option("--model", help="Score this model's folder, through the score store.")]
PolicyRun = Annotated[str | None, typer.Option("--run", help="Score the latest policy of this spec.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a step, for rules whose weights depend on other rows.")]
SplitOf = Annotated[str, typer.Option("--split", help="Rows of which split.")]
SnapshotPlace = Annotated[
    str, typer.Argument(help="A snapshot, the folder of its versions, or a spec's name; @previous or @ID after it.")
]
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
        say(f"{error.format_message()}\nsee: rlhf-data --help")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        say("stopped; what was finished is kept, and the same command goes on from there")
        return STOPPED
    except ImportError as error:
        say(missing_extra(error))
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        say(message(error))
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("polars"):  # polars, not imported here, has errors of its own
            raise
        say(message(error))
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
        return
    from rlhf_data import scaffold

    if from_file is not None:
        out = scaffold.draft(from_file, folder / "pipelines")
        print(f"{out}\nlook it over, then: rlhf-data check {out}")
    else:
        made = scaffold.lay_out(folder / "pipelines")
        print("\n".join(map(str, made)) or f"{folder / 'pipelines'} has all recipes already")


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
            say(str(error))
            say(f"{len(error.problems)} problem{'s' * (len(error.problems) > 1)}")
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
        waits = _waits_for(one, _workspace(workspace), limit)
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
            print(one["spec"] + (f": waits for {', '.join(one['waits_for'])}" if one["waits_for"] else ""))
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
    print_results(results, as_json)


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
    print_results(results, as_json)


@app.command()
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
    for one in _specs(spec, var, overrides, workspace):
        if one.score is None:
            raise ValueError(f"{one.name} has no score section: add score: {{model: …}}")
        if status:
            references = engine.score_status(one, _workspace(workspace), limit=limit, on_step=show_step)
            results.append({"spec": one.name, "references": references})
            continue
        recipe = engine.score(one, _workspace(workspace), limit=limit, on_step=show_step)
        results.append({"spec": one.name, **recipe})
    if as_json:
        print(json.dumps(results))
    elif status:
        print("\n".join(line for result in results for line in score_status_in_words(result)))
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
    print_results(results, as_json)


@app.command()
def generate(
    spec: Annotated[
        Path | None,
        typer.Argument(help="A spec: its latest policy, beside the model that it started from, on its own snapshot."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that writes: a folder or a hub id.")] = None,
    run: Annotated[str | None, typer.Option(help="The latest policy of this spec writes.")] = None,
    beside: Annotated[
        str | None,
        typer.Option(help="A second model: a folder, a hub id or run:NAME; none: the first alone."),
    ] = None,
    snapshot: Annotated[str | None, typer.Option("--snapshot", "-s", help="Whose prompts are answered.")] = None,
    split: Annotated[str, typer.Option(help="Prompts of which split.")] = "test",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts, drawn by keyed hash.")] = 5,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Answers to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest token.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    template: Annotated[str, typer.Option(help="chat, plain, or a .jinja file; a spec has its own.")] = "chat",
    verifier: Annotated[str | None, typer.Option(help="module:function of (messages, answer) → reward.")] = None,
    engine: Annotated[str, typer.Option(help="auto, transformers or vllm.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of prompts and of sampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all answers to this .jsonl or .parquet file.")] = None,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show what one or two models write to held-out prompts, side by side.

    The same question is not answered twice, and one that was stopped goes on; --json prints a line of JSON an answer.
    """
    import shutil

    from rlhf_data import beside as looking
    from rlhf_data.inspect.places import open_at

    space = _workspace(workspace)
    one = _specs(spec, var, overrides, workspace)[0] if spec is not None else None
    models = _writers(one, f"run:{run}" if run else model, beside, space)
    if one is not None:
        snapshot, verifier = snapshot or one.name, verifier or (one.evaluate.verifier if one.evaluate else None)
    if snapshot is None:
        raise ValueError("whose prompts shall be answered? name a spec, or --snapshot SNAPSHOT")
    if out is not None:
        looking.check_file(out)
    rate = None
    if verifier is not None:
        from rlhf_data.rate.verifier import find_verifier

        rate = find_verifier(verifier)
    sampling: dict[str, Any] = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "engine": engine}
    sampling |= _prompt_encoding(one) if one is not None else {"template": template}
    where = {"store": space.samples, "cache": space.root, "seed": seed, "progress": sys.stderr.isatty()}
    opened = open_at(snapshot, space)
    found = looking.answers(opened, models, split=split, prompts=prompts, verifier=rate, **where, **sampling)
    if out is not None:
        looking.write(found, out)
        say(f"{out}: {found.height:,} answers")
    if as_json:
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in found.to_dicts()))
    elif out is None:
        print("\n".join(looking.in_words(found, shutil.get_terminal_size((100, 24)).columns)))
    else:
        print("\n".join(looking.summary(found)))


def _writers(
    spec: "Spec | None", named: str | None, beside: str | None, workspace: "Workspace"
) -> dict[str, dict[str, Any]]:
    """The models that a command asks to write, by the names they are shown under: one, or two side by side.

    Args:
        spec: its policy is the first and the model it started from the second, where none is named in their place.
        named: the first, as `_reference` takes it.
        beside: the second; "none" for none.
        workspace: where runs are.
    """
    from rlhf_data.beside import name_of
    from rlhf_data.plan import resolve_model

    if spec is not None and spec.train is None and named is None:
        raise ValueError(f"{spec.name} has no train section: name a model by --model, or --run NAME")
    if spec is not None and spec.train is not None and named is None:
        models = {spec.name: resolve_model({"run": spec.name}, workspace)}
        second = resolve_model(spec.train.model, workspace) if beside is None else None
        models |= {f"{spec.name} before": second} if second else {}
    else:
        first = _reference(named, workspace)
        models = {name_of(first): first}
    if beside not in (None, "none"):
        other = _reference(beside, workspace)
        models[name_of(other, list(models))] = other
    return models


def _prompt_encoding(spec: "Spec") -> dict[str, Any]:
    """How the prompts of a spec's model become tokens."""
    tokens = spec.score or spec.train
    longest = (tokens.max_length if tokens else None) or 1024
    limit = (tokens.max_prompt_length if tokens else None) or longest * 3 // 4
    return {"template": (tokens.template if tokens else None) or "chat", "max_prompt_length": limit}


def _reference(name: str | None, workspace: "Workspace") -> dict[str, Any]:
    """The model that a person names: a folder, a hub id, or run:NAME."""
    from rlhf_data.plan import resolve_model

    if name is None:
        raise ValueError("which model shall write? name a spec, --model MODEL, or --run NAME")
    return resolve_model({"run": name[4:]}, workspace) if name.startswith("run:") else {"path": name}


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(help="One rule, shown in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the weighting rules, or show one.

    Formula, inputs, table, parameters and reference; docs/rules.md has the curves too.
    """
    from rlhf_data import rules as known
    from rlhf_data.whatif import page

    if name is not None:
        one = page.about(name)
        print(json.dumps(page.as_dict(one), ensure_ascii=False) if as_json else page.in_terminal(one))
        return
    everything = [page.about(each) for each in known.RULES]
    if not as_json:
        print("\n".join(page.listed(everything)))
        return
    keys = ("table", "formula", "columns", "source", "batch")
    listed = [
        {
            "rule": one.name,
            "needs": list(one.needs),
            "parameters": {parameter.name: parameter.default for parameter in one.parameters},
            "about": one.first,
            **{key: getattr(one, key) for key in keys},
        }
        for one in everything
    ]
    print(json.dumps(listed, ensure_ascii=False))


@app.command()
def weights(
    snapshot: SnapshotPlace,
    rules: RuleList = None,
    out: Annotated[
        Path | None, typer.Option(help="Parquet to write: ids, row weights and each rule's weights.")
    ] = None,
    policy: PolicyTable = None,
    model: PolicyModel = None,
    run: PolicyRun = None,
    split: SplitOf = "train",
    batch_size: BatchSize = 16,
    seed: Annotated[int, typer.Option(help="Of the order of rows in those steps.")] = 0,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Weigh a snapshot's rows by rules, before training.

    Unless a policy is named it is the reference itself, as at the first step: every log-ratio is 0. The row's own
    weight is not multiplied in; it is a column of its own.
    """
    from rlhf_data.inspect.places import open_at

    found_at = open_at(snapshot, _workspace(workspace)).path
    made = _weighed(found_at, rules, policy, model, run, split, batch_size, seed, workspace)
    if out is not None:
        made.weights.write_parquet(out, compression="lz4", statistics=False)
    from rlhf_data.whatif.summary import in_words, summary

    told = {"rows": made.weights.height, "out": str(out) if out else None, "rules": summary(made)}
    for note in [*made.notes, *made.left_out.values()]:
        say(note)
    if as_json:
        print(json.dumps({**told, "notes": made.notes, "left_out": made.left_out}))
    else:
        print("\n".join(in_words(told["rules"])))
        if out is not None:
            print(f"{out}: {rows_in_words({split: made.weights.height})}, {made.weights.width} columns")


@app.command()
def show(
    snapshot: SnapshotPlace,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    split: Annotated[str | None, typer.Option(help="Of which split.")] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot: what is in it, some rows, and where all rows went."""
    from rlhf_data.inspect import words
    from rlhf_data.inspect.places import open_at
    from rlhf_data.inspect.show import glance

    opened = open_at(snapshot, _workspace(workspace))
    found = glance(opened, split=split, rows=rows)
    if as_json:
        print(json.dumps({"manifest": opened.manifest, **found}, ensure_ascii=False))
    else:
        lines = [*words.show(opened.manifest, opened.path, found), *words.accounting(opened.manifest["accounting"])]
        print("\n".join(lines))


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(help="The older snapshot: a folder, or a spec's name; @previous, @ID after.")
    ],
    after: Annotated[str, typer.Argument(help="The newer one; the latest of the same where it is left out.")] = "",
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    out: Annotated[Path | None, typer.Option(help="Write all changed rows to this Parquet file.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write an HTML page of the same.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many rows of each kind of change to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Say what changed between two snapshots, and why.

    `rlhf-data diff NAME@previous` compares the latest snapshot of a spec with the one before it.
    """
    from rlhf_data.inspect import words
    from rlhf_data.inspect.diff import diff as compare
    from rlhf_data.inspect.places import open_at

    if out is not None and out.suffix != ".parquet":
        raise typer.BadParameter(
            f"--out {out}: the changed rows are written as Parquet: name a file that ends in .parquet"
        )
    space = _workspace(workspace)
    old = open_at(before, space)
    new = open_at(after, space) if after else open_at(str(old.path.parent), space)
    found = compare(old, new, out=out, examples=examples)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(words.diff(found)))
    if out is not None:
        say(f"{out}: every changed row, before and after")
    if page is not None:
        from rlhf_data import files
        from rlhf_data.inspect.diff import KINDS
        from rlhf_data.report import diff_page

        files.write_text(page, diff_page(found, KINDS))
        say(f"{page}: the same to look at")


@app.command()
def query(
    sql: Annotated[
        str,
        typer.Argument(help="DuckDB SQL that only reads, such as: SELECT source, avg(margin) FROM rows GROUP BY 1."),
    ] = "",
    snapshot: Annotated[
        list[str] | None,
        typer.Option(
            "--snapshot",
            "-s",
            help="[NAME=]SNAPSHOT, more than once for several; all of this workspace where it is left out.",
        ),
    ] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    tables: Annotated[bool, typer.Option("--tables", help="List the tables and their columns, and stop.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to print; --json and --out take all.")] = 40,
    width: Annotated[int, typer.Option(min=4, help="Characters of a value to print.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Write the result to this .parquet or .csv file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask snapshots by SQL.

    Tables: rows, quarantine, accounting, sources, splits, snapshots; of several snapshots also NAME.rows and so on.
    """
    from rlhf_data.inspect import query as asking
    from rlhf_data.inspect import words

    opened = _named_snapshots(snapshot, _workspace(workspace))
    if tables:
        described = asking.describe(opened)
        print(json.dumps(described) if as_json else "\n".join(words.tables(described)))
    elif out is not None:
        print(f"{out}: {asking.query_to(sql, opened, out):,} rows")
    elif as_json:
        answer = asking.query(sql, opened)
        named = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        print(json.dumps(named, ensure_ascii=False, default=str))
    else:
        answer = asking.query(sql, opened, rows=rows)
        print("\n".join(words.table(answer.columns, answer.rows, width=width)))
        if answer.more:
            say(f"… and more than these {rows} rows: --rows N prints more, --out FILE keeps all")


@app.command()
def explain(
    row_id: Annotated[
        str, typer.Argument(help="The beginning of a pair_id, completion_id or prompt_id, or FILE#RECORD.")
    ],
    snapshot: Annotated[
        str, typer.Argument(help="A snapshot; all latest ones of this workspace where it is left out.")
    ] = "",
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Say where a row comes from.

    Raw records, judgments, and what each step made of them; of an answer that is in no row, where it was left out.
    """
    from rlhf_data.inspect import words
    from rlhf_data.inspect.explain import explain as trace
    from rlhf_data.inspect.places import latest_of_all, open_at

    space = _workspace(workspace)
    among = [open_at(snapshot, space)] if snapshot else latest_of_all(space)
    found = next((known for opened in among if (known := trace(row_id, opened, space)) is not None), None)
    if found is None:
        looked = ", ".join(str(opened.path) for opened in among)
        raise ValueError(f"nothing is known of {row_id!r} in {looked}; `rlhf-data show` prints some ids of a snapshot")
    print(json.dumps(found, ensure_ascii=False, default=str) if as_json else "\n".join(words.explain(found)))


@app.command()
def quarantine(
    snapshot: SnapshotPlace,
    code: Annotated[str | None, typer.Option(help="Only rows refused by this code.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows of each code to show.")] = 2,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show what was refused, by code."""
    import polars as pl

    from rlhf_data import tables
    from rlhf_data.inspect.places import open_at

    table = tables.read(
        open_at(snapshot, _workspace(workspace)).path / "quarantine" / "quarantine.parquet", "quarantine"
    )
    table = table if code is None else table.filter(pl.col("code") == code)
    if as_json:
        print(json.dumps(table.to_dicts(), ensure_ascii=False))
        return
    for (reason,), refused in table.sort("code").group_by("code", maintain_order=True):
        print(f"{refused.height:>7,}  {reason}")
        for row in refused.head(rows).iter_rows(named=True):
            print(f"         {', '.join(row['raw_ref'])}  {row['detail'] or ''}\n           {short(row['row'])}")
    nothing = "nothing was refused" if code is None else f"nothing was refused as {code}"
    print(f"{table.height:>7,}  in all" if table.height else nothing)


@app.command()
def report(
    snapshot: SnapshotPlace,
    rules: RuleList = None,
    out: Annotated[Path, typer.Option(help="Where the page of --rules goes.")] = Path("weights.html"),
    policy: PolicyTable = None,
    model: PolicyModel = None,
    run: PolicyRun = None,
    probe: Annotated[int, typer.Option(min=0, help="Measure the gradients of N rows of each source.")] = 0,
    split: SplitOf = "train",
    batch_size: BatchSize = 16,
    seed: Annotated[int, typer.Option(help="Of the order of rows in those steps, and of the rows to probe.")] = 0,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Print where the HTML report of a snapshot or a run is, or compare rules on a snapshot.

    Of a run's folder the page is made anew, also while it is training.
    With --rules: a page of where each rule's gradient would come from, before training; --json gives its figures.
    Without a policy named, it is the reference itself. --probe runs the policy backward over a few rows.
    """
    from rlhf_data.inspect.places import open_at

    if (page := _run_page(Path(snapshot))) is not None and rules is None:
        print(json.dumps({"report": str(page)}) if as_json else page)
        return
    found_at = open_at(snapshot, _workspace(workspace)).path
    if rules is None:
        page = found_at / "report.html"
        print(json.dumps({"report": str(page)}) if as_json else page)
        return
    from rlhf_data.report import weights_page
    from rlhf_data.whatif.figures import ALSO, figures

    made = _weighed(found_at, rules, policy, model, run, split, batch_size, seed, workspace, ALSO)
    known = None
    if probe:
        from rlhf_data.whatif.probe import probe as measure

        policy_model = _policy_model(model, run, workspace)
        known = measure(found_at, policy_model, split=split, each=probe, seed=seed, cache=_workspace(workspace).root)
    found = figures(found_at, made, split=split, known=known)
    out.write_text(weights_page(found), encoding="utf-8")
    print(json.dumps({"report": str(out), **found}, ensure_ascii=False) if as_json else out)


@app.command()
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

    parts = garbage.collect(_workspace(workspace), keep=keep, older_than=older_than, scores=scores, dry=dry_run)
    print(json.dumps({"dry_run": dry_run, "removed": parts}) if as_json else "\n".join(words.sizes(parts, dry=dry_run)))


@scores_app.command()
def compact(workspace: WorkspacePath = DEFAULT_WORKSPACE, as_json: AsJson = False) -> None:
    """Join the store's many small files into few.

    Nothing is lost when this is stopped, and others may score meanwhile.
    """
    from rlhf_data.scoring import store

    done = store.compact(_workspace(workspace).scores)
    if as_json:
        print(json.dumps([{"folder": str(one.folder), "before": one.before, "now": one.now} for one in done]))
    else:
        lines = [f"{one.folder}: {one.before:,} files → {one.now:,}" for one in done]
        print("\n".join(lines) or "the store is empty")


@scores_app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="The folder scores of another workspace, or a copy of it.")],
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Take over the scores of another machine's store.

    What both have stays as it is here; where they disagree by more than rounding, nothing is taken over.
    """
    from rlhf_data.scoring import store

    done = store.merge(_workspace(workspace).scores, folder)
    if as_json:
        keys = ("folder", "recipe", "added", "known")
        print(json.dumps([{**dict(zip(keys, one, strict=True)), "folder": str(one.folder)} for one in done]))
    else:
        for one in done:
            print(f"{one.folder}: {one.added:,} taken over, {one.known:,} here already")


@app.command()
def doctor(workspace: WorkspacePath = DEFAULT_WORKSPACE, as_json: AsJson = False) -> None:
    """Say what is installed and what disk is used."""
    from rlhf_data import installation

    facts = installation.facts(workspace)
    if as_json:
        print(json.dumps(facts))
    else:
        print("\n".join(installation.in_words(facts)))


@app.command()
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

    specs = _specs(spec, var, None, workspace)
    flow = "train" if any(one.train is not None for one in specs) else "build"
    schedules = [one.schedule for one in specs if one.schedule is not None]
    if len(schedules) > 1:
        raise ValueError(f"{len(schedules)} specs of {spec} have a schedule: deploy them one by one")
    parameters = {"spec": str(spec.resolve()), "workspace": str(workspace.resolve()), "variables": _pairs(var, "--var")}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", f"{tables.folder('flows') / flow}.py:{flow}"]
    command += ["--name", spec.stem, "--pool", pool, "--params", json.dumps(parameters)]
    for schedule in schedules:
        command += ["--cron", schedule.cron, "--timezone", schedule.timezone]
    return 1 if subprocess.run(command, check=False).returncode else 0


def _run_page(place: Path) -> Path | None:
    """The page of a run, made now, where `place` is the folder of a run or of a spec's runs; else None."""
    latest = place / "latest"
    run = place / latest.read_text(encoding="utf-8").strip() if latest.is_file() else place
    if not (run / "metrics.jsonl").is_file():
        return None
    from rlhf_data import engine

    return engine.report_run(run)


def _weighed(
    snapshot: Path,
    rules: str | None,
    policy: Path | None,
    model: str | None,
    run: str | None,
    split: str,
    batch_size: int,
    seed: int,
    workspace: Path,
    also: tuple[str, ...] = (),
) -> "Weighed":
    """The weights that a command asks for."""
    from rlhf_data import whatif

    if not rules:
        raise ValueError("no rule is named: write --rules dpo,simpo, or --rules all; `rlhf-data rules` lists them")
    asked = None if rules == "all" else whatif.parse(rules)
    given = _policy(snapshot, policy, model, run, split, workspace)
    return whatif.weigh(snapshot, asked, split=split, policy=given, batch_size=batch_size, seed=seed, also=also)


def _policy(
    snapshot: Path, policy: Path | None, model: str | None, run: str | None, split: str, workspace: Path
) -> "Callable[[], pl.DataFrame] | None":
    """What gives the log-probs of the policy that a command names; None where it names none."""
    if sum(given is not None for given in (policy, model, run)) > 1:
        raise ValueError("--policy, --model and --run each name the policy: give one of them")
    if policy is None and model is None and run is None:
        return None
    from rlhf_data.whatif.policy import read_policy, score_policy

    if policy is not None:
        return lambda: read_policy(policy)
    space = _workspace(workspace)
    reference = _policy_model(model, run, workspace)
    assert reference is not None
    return lambda: score_policy(snapshot, reference, split=split, store=space.scores, cache=space.root)


def _policy_model(model: str | None, run: str | None, workspace: Path) -> dict[str, str] | None:
    """The model that a command names, by its folder or by the spec that trained it."""
    if model is None and run is None:
        return None
    folder = _workspace(workspace).model_of(run) if run else Path(model or "")
    if folder is None or not folder.is_dir():
        raise ValueError(f"there is no trained policy of {run}: train it first" if run else f"{model} is no folder")
    return {"path": str(folder)}


def _specs(place: Path, variables: list[str] | None, overrides: list[str] | None, workspace: Path) -> list["Spec"]:
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


def _named_snapshots(given: list[str] | None, workspace: "Workspace") -> dict[str, "Snapshot"]:
    """The snapshots that are asked, by the names that SQL calls them."""
    from rlhf_data.inspect.places import latest_of_all, open_at
    from rlhf_data.inspect.query import named

    if not given:
        return named([(None, opened) for opened in latest_of_all(workspace)])
    split = [(text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)) for text in given]
    return named([(name or None, open_at(place, workspace)) for name, _, place in split])


def _waits_for(spec: "Spec", workspace: "Workspace", limit: int | None) -> list[str]:
    """The specs whose runs or snapshots must be there before this one can be planned."""
    from rlhf_data.spec.read import runs_wanted, snapshots_wanted

    built = {name for name, path in runs_wanted(spec).items() if path[0] != "train"}
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


if __name__ == "__main__":
    main()
