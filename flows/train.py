"""Prefect's run: build, train, evaluate. Deployed by its path, flows/train.py:train; nothing imports it."""

import errno
import json
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.flows import load_flow_from_entrypoint
from prefect.tasks import Task
from pydantic import Field

from rlhf_data import engine
from rlhf_data.plan import Workspace, limited
from rlhf_data.report.evaluation import Estimate, measures
from rlhf_data.spec import Spec, check, read, read_all

# As in build.py, from which nothing can be imported: what waiting does not cure.
LASTING = (errno.ENOENT, errno.EACCES, errno.ENOSPC)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: the machine's, not the data's or the spec's."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in LASTING


# Trainer and evaluation keep what they finished, so a second try goes on from there.
long_task = task(
    retries=2, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE, persist_result=False
)


@long_task
def train_policy(spec: str, workspace: str, limit: int | None, variables: dict[str, str] | None) -> str:
    """Train on the snapshot of a spec; the folder of the run."""
    one, _ = read(Path(spec), variables=variables)
    return str(engine.train(one, Workspace(Path(workspace)), limit=limit, progress=False))


@long_task
def evaluate_policy(spec: str, run: str, workspace: str, limit: int | None, variables: dict[str, str] | None) -> str:
    """Compare a policy on held-out rows with the model it started from; the file of the figures."""
    one, _ = read(Path(spec), variables=variables)
    engine.evaluate(one, Workspace(Path(workspace)), Path(run), limit=limit, progress=False)
    return str(Path(run) / "evaluation.json")


@flow(flow_run_name="{spec}")
def train(
    spec: str,
    workspace: str = ".rlhf",
    limit: Annotated[int, Field(ge=1)] | None = None,
    variables: dict[str, str] | None = None,
) -> str:
    """Build, train and evaluate; what is finished already is not done again.

    Args:
        spec: a spec, or a folder of specs, run in the order of their references. One without `train` is only built,
            one without `evaluate` not evaluated.
        workspace: folder of the cache, the scores and the runs.
        limit: take the first so many records of each raw file: a quick look.
        variables: values for ${NAME} in the spec.

    Returns:
        The folder of the run; of several specs, that of the last one.
    """
    specs = read_all(Path(spec), variables=variables)
    check(specs, Workspace(Path(workspace)))
    if all(one.train is None for one, _ in specs.values()):
        raise ValueError(f"{spec} has no train section: add train: {{rule: dpo, model: …}}, or deploy the flow `build`")
    # By its path, as Prefect itself loads it, and only now: its loader holds a lock while it loads this file.
    build = load_flow_from_entrypoint(f"{Path(__file__).with_name('build.py')}:build", use_placeholder_flow=False)
    run = ""
    for file, (one, _) in specs.items():
        build(str(file), workspace, limit, variables)
        if one.train is not None:
            run = _train(one, str(file), workspace, limit, variables)
    return run


def _train(spec: Spec, file: str, workspace: str, limit: int | None, variables: dict[str, str] | None) -> str:
    """Train and, where the spec asks for it, evaluate; figures and report go beside the run in Prefect's pages."""
    name = limited(spec.name, limit)
    key = "".join(c if c.isalnum() else "-" for c in name)
    run = train_policy.with_options(task_run_name=f"train {name}")(file, workspace, limit, variables)
    if spec.evaluate is not None:
        evaluate = evaluate_policy.with_options(task_run_name=f"evaluate {name}")
        figures = Path(evaluate(file, run, workspace, limit, variables))
        create_table_artifact(
            key=f"{key}-evaluation",
            table=_table(json.loads(figures.read_text(encoding="utf-8"))),
            description=f"The policy of {name} on held-out rows, and the model it started from; 95 % intervals.",
        )
    report = (Path(run) / "report.html").resolve()
    link_text = f"report of the run of {name}"
    create_link_artifact(key=f"{key}-run-report", link=report.as_uri(), link_text=link_text, description=f"`{report}`")
    return run


def _table(evaluation: dict[str, Any]) -> list[dict[str, str | int]]:
    return [
        {
            "measure": measure.name,
            "group": line.group or "all",
            "n": line.n,
            "before": _words(line.before),
            "after": _words(line.after),
            "difference": _words(line.difference, sign="+"),
        }
        for measure in measures(evaluation)
        for line in measure.lines
    ]


def _words(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
