"""flows/build.py: the steps of `rlhf-data build` as Prefect's tasks."""

import errno
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_data import engine
from rlhf_data.plan import Workspace, in_use, plan
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec import read
from tests.flows.conftest import write_spec


@pytest.fixture(scope="module")
def build(server, load):
    return load("flows/build.py:build")


class Run(NamedTuple):
    folder: Path
    spec: Path
    state: Any
    snapshot: Path
    held: list[bool]  # for each step: whether the workspace was in use while it ran


@pytest.fixture(scope="module")
def run(build, tmp_path_factory) -> Run:
    """One run of the flow, which most tests look at."""
    folder = tmp_path_factory.mktemp("flow")
    spec = write_spec(folder)
    held: list[bool] = []
    original = engine.run_step

    def run_step(*arguments, **options):
        try:
            with in_use(Workspace(folder / "work"), alone=True):
                held.append(False)
        except ValueError:
            held.append(True)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run_step", run_step)
        state = build(str(spec), str(folder / "work"), return_state=True)
    return Run(folder, spec, state, Path(state.result()), held)


def test_the_flow_publishes_the_snapshot_that_the_engine_publishes(run, tmp_path):
    spec, _ = read(write_spec(tmp_path))
    by_engine = Snapshot(engine.build(spec, Workspace(tmp_path / "work")).snapshot)
    by_flow = Snapshot(run.snapshot)
    assert by_flow.manifest["content_hash"] == by_engine.manifest["content_hash"]
    assert by_flow.manifest["accounting"] == by_engine.manifest["accounting"]


def test_no_step_of_the_flow_runs_while_another_process_could_remove_what_it_reads(run):
    assert run.held == [True] * 8
    with in_use(Workspace(run.folder / "work"), alone=True):  # and afterwards another may
        pass


def test_the_next_plan_finds_everything_cached(run):
    spec, _ = read(run.spec)
    assert [p.why for p in plan(spec, Workspace(run.folder / "work")) if not p.cached] == []


def test_each_step_is_a_task_of_its_name_that_waits_for_the_steps_it_reads(run, task_runs):
    spec, _ = read(run.spec)
    steps = {p.step.name: p.step for p in plan(spec, Workspace(run.folder / "work"))}
    runs = task_runs(run.state, n=len(steps))
    assert runs.keys() == steps.keys()
    names = {task.id: name for name, task in runs.items()}
    for name, task in runs.items():
        waited = {names[each.id] for each in task.task_inputs.get("wait_for", [])}
        assert waited == set(steps[name].inputs.values())


def test_the_artifacts_tell_what_the_manifest_tells(run, artifact):
    manifest = Snapshot(run.snapshot).manifest
    table = artifact("sums-accounting")
    assert [(line["step"], line["in"], line["out"]) for line in table] == [
        (count["step"], count["rows_in"], count["out"]) for count in manifest["accounting"]
    ]
    refused = {(line["step"], line["quarantined"]) for line in table if line["quarantined"]}
    assert refused == {("read:two", "1 pair.identical")}
    assert f"({(run.snapshot / 'report.html').resolve().as_uri()})" in artifact("sums-report")
    summary = artifact("sums-snapshot")
    assert manifest["id"] in summary
    assert sum(manifest["rows"].values()) == 39
    for split, rows in manifest["rows"].items():
        assert f"| {split} | {rows} |" in summary


def test_a_second_run_runs_nothing_anew(run, build, task_runs, monkeypatch):
    monkeypatch.setattr(engine, "_function", None)  # what a step that runs goes through
    state = build(str(run.spec), str(run.folder / "work"), return_state=True)
    assert state.result() == str(run.snapshot)
    runs = task_runs(state, n=len(task_runs(run.state, n=1)))
    assert {task.state.name for task in runs.values()} == {"Cached"}
    assert runs["read:two"].state.message == "20 records → 19; 20 observations → 19"


def test_sources_are_read_at_the_same_time(build, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    original = engine.run_step

    def run_step(planned, *arguments, **options):
        if planned.step.name.startswith("read:"):
            both.wait()  # raises unless the other read arrives too
        return original(planned, *arguments, **options)

    monkeypatch.setattr(engine, "run_step", run_step)
    assert Snapshot(build(str(write_spec(tmp_path)), str(tmp_path / "work"))).manifest["rows"]


def test_a_step_that_fails_once_with_an_error_of_the_machine_is_tried_again(build, tmp_path, task_runs, monkeypatch):
    failed: list[str] = []
    original = engine.run_step

    def run_step(planned, *arguments, **options):
        if planned.step.name == "rate" and not failed:
            failed.append("rate")
            raise OSError(errno.EIO, "Input/output error")
        return original(planned, *arguments, **options)

    monkeypatch.setattr(engine, "run_step", run_step)
    state = build(str(write_spec(tmp_path)), str(tmp_path / "work"), return_state=True)
    runs = task_runs(state, n=7)
    assert runs["rate"].run_count == 2
    assert {task.run_count for name, task in runs.items() if name != "rate"} == {1}


def test_a_step_that_refuses_its_data_is_not_tried_again(build, tmp_path, task_runs):
    spec = write_spec(tmp_path, rest="expect: {rows: [1000, null]}\n")
    state = build(str(spec), str(tmp_path / "work"), return_state=True)
    with pytest.raises(ValueError, match=r"1,?000"):
        state.result()
    assert state.is_failed()
    assert task_runs(state, n=7)["publish"].run_count == 1
    assert not (tmp_path / "snapshots" / "sums" / "refs").exists()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("connection reset"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("rating 11 is not within 1 to 10"), False),
    ],
    ids=["network", "full disk", "no file", "value"],
)
@pytest.mark.parametrize("entrypoint", ["flows/build.py:build", "flows/train.py:train"])
def test_only_what_may_pass_is_tried_again(load, entrypoint, error, passes):
    from prefect.states import Failed

    may_pass = load(entrypoint).fn.__globals__["may_pass"]
    assert may_pass(None, None, Failed(data=error)) is passes


def test_a_bad_spec_fails_at_once_with_its_problem_in_the_message(build, tmp_path):
    spec = write_spec(tmp_path)
    spec.write_text(spec.read_text().replace("pairing:", "paring:"))
    state = build(str(spec), str(tmp_path / "work"), return_state=True)
    assert state.is_failed()
    assert "sums.yaml:7: shape.paring: unknown key; did you mean 'pairing'?" in state.message
    with pytest.raises(ValueError, match="did you mean 'pairing'"):
        state.result()
    assert not (tmp_path / "work").exists()


def test_each_spec_of_a_folder_is_a_flow_run_of_its_own(build, tmp_path, artifact):
    write_spec(tmp_path, "a")
    write_spec(tmp_path, "b.2")
    last = build(str(tmp_path / "specs"), str(tmp_path / "work"), limit=4)
    assert Path(last).parent.name == "b.2-limit4"
    for key in ("a-limit4", "b-2-limit4"):
        assert artifact(f"{key}-accounting")[0]["in"] == 4


def test_a_folder_that_needs_a_trained_model_stops_before_anything_is_built(build, tmp_path):
    write_spec(tmp_path, "a")
    write_spec(tmp_path, "b", rest="score: {model: {run: a}}\n")
    state = build(str(tmp_path / "specs"), str(tmp_path / "work"), return_state=True)
    assert "no run of it" in state.message
    assert not (tmp_path / "snapshots").exists()
