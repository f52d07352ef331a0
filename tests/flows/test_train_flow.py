"""flows/train.py: build, train and evaluate, in the order of the specs' references."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_data.plan import Workspace
from tests.flows.conftest import write_raw, write_spec

SPEC = """\
version: 1
name: {name}
sources: {{raw: {{path: {folder}/raw/one.jsonl}}}}
split: {{test: 0.4}}
shape: {{to: paired, pairing: as_given}}
score: {{model: {reference}, max_length: 64}}
publish: {{to: {folder}/snapshots/{name}}}
train: {{rule: dpo, beta: 0.3, model: {reference}, max_steps: 2, batch_size: 4, learning_rate: 1e-3}}
{rest}
"""


@pytest.fixture(scope="module")
def train(server, load):
    return load("flows/train.py:train")


class Run(NamedTuple):
    folder: Path
    state: Any
    run: Path


@pytest.fixture(scope="module")
def run(train, tmp_path_factory) -> Run:
    """Two specs, their files in the other order; the second starts from the first's policy, and is evaluated."""
    from tests import tiny_model

    folder = tmp_path_factory.mktemp("train")
    write_raw(folder / "raw")
    tiny_model.save(folder / "model")
    specs = folder / "specs"
    specs.mkdir()
    (specs / "a.yaml").write_text(
        SPEC.format(name="second", folder=folder, reference="{run: first}", rest="evaluate: {}")
    )
    (specs / "b.yaml").write_text(SPEC.format(name="first", folder=folder, reference=folder / "model", rest=""))
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
    figures = json.loads((run.run / "evaluation.json").read_text())["measures"]
    assert {line["measure"] for line in table} == {measure["name"] for measure in figures}
    first, line = table[0], figures[0]["lines"][0]
    assert (first["group"], first["n"]) == ("all", line["n"])
    for part in ("before", "after", "difference"):
        value, low, high = (float(number) for number in re.findall(r"[-+\d.]+", first[part]))
        rounded = {key: round(figure, 3) for key, figure in line[part].items()}
        assert {"value": value, "low": low, "high": high} == rounded
    assert f"({(run.run / 'report.html').resolve().as_uri()})" in artifact("second-run-report")
    assert (run.run / "report.html").is_file()
    assert artifact("second-accounting")


def test_training_and_evaluation_are_tasks_of_the_specs_names(run, task_runs):
    runs = task_runs(run.state, n=5)
    tasks = {name for name in runs if name.startswith(("train ", "evaluate "))}  # the others are the builds
    assert tasks == {"train first", "train second", "evaluate second"}


def test_a_second_run_trains_nothing_anew(run, train):
    model = run.run / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert Path(train(str(run.folder / "specs"), str(run.folder / "work"))) == run.run
    assert model.stat().st_mtime_ns == before


def test_specs_that_train_nothing_are_refused_before_they_are_built(train, tmp_path):
    state = train(str(write_spec(tmp_path)), str(tmp_path / "work"), return_state=True)
    assert "no train section" in state.message
    assert not (tmp_path / "snapshots").exists()
