"""Commands over rules: what they are, and how they weigh a snapshot before training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_data.commands.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    SnapshotPlace,
    WorkspacePath,
    named_model,
    open_workspace,
)
from rlhf_data.terminal import rows_in_words, say

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from rlhf_data.whatif import Weighed

RuleList = Annotated[
    str | None, typer.Option("--rules", help="RULE or RULE:PARAMETER=VALUE:…, with commas between; all: all that fit.")
]
PolicyTable = Annotated[Path | None, typer.Option("--policy", help="Parquet of completion_id, logps (nats, summed).")]
PolicyModel = Annotated[
    str | None, typer.Option("--model", help="Score this model, a folder or a hub id, through the score store.")
]
PolicyRun = Annotated[str | None, typer.Option("--run", help="Score the latest policy of this spec.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a step, for rules whose weights depend on other rows.")]
SplitOf = Annotated[str, typer.Option("--split", help="Rows of which split.")]


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

    found_at = open_at(snapshot, open_workspace(workspace)).path
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
    found_at = open_at(snapshot, open_workspace(workspace)).path
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

        space = open_workspace(workspace)
        named = f"run:{run}" if run else model
        probed = named_model(named, space) if named else None
        known = measure(found_at, probed, split=split, each=probe, seed=seed, cache=space.root)
    found = figures(found_at, made, split=split, known=known)
    out.write_text(weights_page(found), encoding="utf-8")
    print(json.dumps({"report": str(out), **found}, ensure_ascii=False) if as_json else out)


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
    from rlhf_data.whatif.policy import read_policy, score_policy

    if policy is not None:
        return lambda: read_policy(policy)
    named = f"run:{run}" if run else model
    if named is None:
        return None
    space = open_workspace(workspace)
    reference = named_model(named, space)
    return lambda: score_policy(snapshot, reference, split=split, store=space.scores, cache=space.root)
