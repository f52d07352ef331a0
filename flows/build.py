"""Prefect's build: one task per step of a plan. Deployed by its path, flows/build.py:build; nothing imports it."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import quote
from pydantic import Field

from rlhf_data import engine
from rlhf_data.accounting import Count
from rlhf_data.plan import Planned, Workspace, in_use, limited, plan, remember
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec import Spec, check, read_all

# What waiting does not cure: no such file, no right to it, no room on the disk.
LASTING = (errno.ENOENT, errno.EACCES, errno.ENOSPC)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: the machine's, not the data's or the spec's."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in LASTING


# The engine's workspace is the cache, and it is keyed by content: Prefect hashes no inputs and keeps no results.
@task(
    task_run_name="{step}",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_step(step: str, planned: dict[str, Planned], workspace: str) -> State[str]:
    """Run one step of a plan, if its result is not in the workspace; the folder of its result."""
    this, space = planned[step], Workspace(Path(workspace))
    if not this.cached:
        get_run_logger().info("why: %s", this.why)
    counts = engine.run_step(this, list(planned.values()), space)
    for note in (note for count in counts for note in count.notes):
        get_run_logger().warning(note)
    said = "; ".join(f"{count.rows_in:,} {count.unit} → {count.out:,}" for count in counts)
    return Completed(
        name="Cached" if this.cached else "Completed",
        message=said or None,
        data=str(space.step(this.fingerprint)),
    )


# A source that is being read may hold a whole file in memory, so not all of them are read at once. Steps are submitted
# after those they read, so a step that waits never holds the thread that its input needs.
# (cast: Prefect's own task runners do not fit the annotation of its decorator.)
FOUR_AT_ONCE = cast("Any", ThreadPoolTaskRunner(max_workers=4))


@flow(flow_run_name="{spec}", task_runner=FOUR_AT_ONCE)
def build(
    spec: str,
    workspace: str = ".rlhf",
    limit: Annotated[int, Field(ge=1)] | None = None,
    variables: dict[str, str] | None = None,
) -> str:
    """Raw data to a published snapshot, step by step; only what changed is computed.

    Args:
        spec: a spec, or a folder of specs, each built in a flow run of its own in the order of their references. Where
            one starts from the trained model of another, deploy the flow `train`.
        workspace: folder of the cache, the scores and the runs.
        limit: take the first so many records of each raw file: a quick look.
        variables: values for ${NAME} in the spec.

    Returns:
        The folder of the snapshot; of several specs, that of the last one.
    """
    space = Workspace(Path(workspace))
    specs = read_all(Path(spec), variables=variables)
    check(specs, space)
    if Path(spec).is_dir():
        for file, one in specs.items():
            check({file: one}, space)  # alone, as it is built: a model that is not trained yet stops it now, not later
        return [build(str(file), workspace, limit, variables) for file in specs][-1]
    ((one, _),) = specs.values()
    with in_use(space):  # `gc` refuses until the last step has read what it needs
        return str(_build(one, space, limit))


def _build(spec: Spec, workspace: Workspace, limit: int | None) -> Path:
    """What `engine.build` does, with a task in place of each call."""
    planned = plan(spec, workspace, limit=limit)
    by_name = {p.step.name: p for p in planned}
    running = {}
    for name, p in by_name.items():
        inputs = [running[step] for step in dict.fromkeys(p.step.inputs.values())]
        # quote: Prefect hands the plan over without a walk through it, and unwraps it.
        running[name] = run_step.submit(name, quote(by_name), str(workspace.root), wait_for=inputs)  # pyright: ignore[reportCallIssue]
    folders = [Path(future.result()) for future in running.values()]
    remember(spec, workspace, planned, limit)
    snapshot = Snapshot(engine.published(planned, workspace))
    _show(snapshot, [count for folder in folders for count in engine.read_counts(folder)], limited(spec.name, limit))
    return snapshot.path


def _show(snapshot: Snapshot, counts: list[Count], name: str) -> None:
    """The accounting, the report and a summary, beside the run in Prefect's pages."""
    key = "".join(c if c.isalnum() else "-" for c in name)
    report = (snapshot.path / "report.html").resolve()
    head = f"# {name}\n\nSnapshot `{snapshot.id}` in `{snapshot.path}`\n\n| split | rows |\n| --- | ---: |\n"
    rows = "\n".join(f"| {split} | {n:,} |" for split, n in snapshot.manifest["rows"].items())
    create_table_artifact(
        key=f"{key}-accounting",
        table=[_line(count) for count in counts],
        description=f"What became of every row on its way to {name}: in = out + merged + quarantined + filtered.",
    )
    create_link_artifact(
        key=f"{key}-report", link=report.as_uri(), link_text=f"report of {name}", description=f"`{report}`"
    )
    create_markdown_artifact(key=f"{key}-snapshot", markdown=head + rows, description=f"Snapshot of {name}.")


def _line(count: Count) -> dict[str, str | int]:
    return {
        "step": count.step,
        "unit": count.unit,
        "in": count.rows_in,
        "out": count.out,
        "merged": _reasons(count.merged),
        "quarantined": _reasons(count.quarantined),
        "filtered": _reasons(count.filtered),
    }


def _reasons(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in counted.items())
