"""flows/train.py: build, train and evaluate, in the order of the specs' references."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_data import engine
from rlhf_data.plan import Workspace
from tests.flows.conftest import write_raw, write_spec

pytest.importorskip("torch")

SPEC = """\
version: 1
name: {name}
sources: {{raw: {{path: {folder}/raw/one.jsonl}}}}
split: {{test: 0.4}}
shape: {{to: paired, pairing: as_given}}
score: {{model: {reference}, max_length: 64}}
publish: {{to: {folder}/snapshots/{name}}}
train: {{rule: dpo, beta: 0.3, model: {reference}, max_steps: 2, batch_size: 4, learning_rate: 1e-3}}
"""


@pytest.fixture(scope="module")
def train(server, load):
    return load("flows/train.py:train")


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.25, "high": value + 0.25}


def evaluate(spec, workspace, run: Path, *, limit, progress) -> dict[str, Any]:
    """Stands in for the engine's evaluation, and writes what it writes."""
    figures = {"before": estimate(0.5), "after": estimate(0.75), "difference": estimate(0.25)}
    lines = [{"group": None, "n": 8, **figures}, {"group": "sums", "n": 8, **figures, "before": None}]
    result = {"measures": [{"name": "preference accuracy", "share": True, "lines": lines}]}
    (run / "evaluation.json").write_text(json.dumps(result))
    (run / "report.html").write_text("<html></html>")
    return result


class Run(NamedTuple):
    folder: Path
    state: Any
    run: Path


@pytest.fixture(scope="module")
def run(train, tmp_path_factory) -> Run:
    """Two specs, the second of which starts from the policy of the first; the file names say the other order."""
    from tests import tiny_model

    folder = tmp_path_factory.mktemp("train")
    write_raw(folder / "raw")
    tiny_model.save(folder / "model")
    specs = folder / "specs"
    specs.mkdir()
    (specs / "a.yaml").write_text(SPEC.format(name="second", folder=folder, reference="{run: first}"))
    (specs / "b.yaml").write_text(SPEC.format(name="first", folder=folder, reference=folder / "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "evaluate", evaluate)
        state = train(str(specs), str(folder / "work"), return_state=True)
    return Run(folder, state, Path(state.result()))


def test_the_last_spec_is_trained_from_the_policy_of_the_first(run):
    space = Workspace(run.folder / "work")
    assert run.run.parent == space.runs("second")
    assert space.model_of("second") == run.run / "model"
    assert json.loads((run.run / "manifest.json").read_text())
    assert space.model_of("first") is not None


def test_the_artifacts_show_the_figures_before_and_after(run, artifact):
    table = artifact("second-evaluation")
    assert [list(line.values()) for line in table] == [
        ["preference accuracy", "all", 8, "0.500 [0.250, 0.750]", "0.750 [0.500, 1.000]", "+0.250 [+0.000, +0.500]"],
        ["preference accuracy", "sums", 8, "", "0.750 [0.500, 1.000]", "+0.250 [+0.000, +0.500]"],
    ]
    assert f"({(run.run / 'report.html').resolve().as_uri()})" in artifact("second-run-report")
    assert (run.run / "report.html").is_file()
    assert artifact("second-accounting")


def test_training_and_evaluation_are_tasks_of_the_specs_names(run, task_runs):
    runs = task_runs(run.state, n=6)
    tasks = {name for name in runs if name.startswith(("train ", "evaluate "))}  # the others are the builds
    assert tasks == {"train first", "evaluate first", "train second", "evaluate second"}


def test_a_second_run_trains_nothing_anew(run, train, monkeypatch):
    monkeypatch.setattr(engine, "evaluate", evaluate)
    model = run.run / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert Path(train(str(run.folder / "specs"), str(run.folder / "work"))) == run.run
    assert model.stat().st_mtime_ns == before


def test_specs_that_train_nothing_are_refused_before_they_are_built(train, tmp_path):
    state = train(str(write_spec(tmp_path)), str(tmp_path / "work"), return_state=True)
    assert "no train section" in state.message
    assert not (tmp_path / "snapshots").exists()
