"""Adapters, moving references and blends through specs: what `check` and `run` make of them."""

import json
from pathlib import Path

import pytest

from rlhf_data import engine
from rlhf_data.cli import run_command
from rlhf_data.plan import Workspace
from rlhf_data.spec import read
from tests import tiny_model
from tests.project import ratings

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = """version: 1
name: {name}
sources: {{a: {{path: raw/*.jsonl}}}}
rate: {{by: rating, scale: [1, 5]}}
split: {{test: 0.2}}
shape: {shape}
{score}publish: {{to: snapshots/{name}}}
"""
TOKENS = "max_length: 64"
SETTINGS = "max_steps: 2, batch_size: 4, learning_rate: 1e-3, model: model"
BLEND = "[{snapshot: texts, rule: sft, coefficient: 0.5, batch_size: 3}]"
LORA = "lora: {r: 2, targets: [q_proj, v_proj]}"
SPECS = {
    "adapted": (
        "{to: paired}",
        f"score: {{model: model, {TOKENS}}}\n",
        f"train: {{rule: dpo, {SETTINGS}, {LORA}, blend: {BLEND}}}\nevaluate: {{}}\n",
    ),
    "moving": ("{to: paired}", "", f"train: {{rule: dpo, {SETTINGS}, {TOKENS}, reference: {{ema: 0.5}}}}\n"),
    "texts": ("{to: unpaired}", "", ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three specs in a folder, run in one go; a blend stands before the spec whose snapshot it reads."""
    folder = tmp_path_factory.mktemp("specs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("raw").mkdir()
        Path("raw/r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratings()))
        tiny_model.save(folder / "model")
        Path("specs").mkdir()
        for name, (shape, score, train) in SPECS.items():
            Path(f"specs/{name}.yaml").write_text(DATA.format(name=name, shape=shape, score=score) + train)
        assert run_command(["check", "specs"]) == 0
        assert run_command(["run", "specs"]) == 0
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    return Workspace(Path(".rlhf"))


def run_of(workspace: Workspace, name: str) -> tuple[Path, dict, list[dict]]:
    folder = workspace.runs(name)
    run = folder / (folder / "latest").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return run, json.loads((run / "manifest.json").read_text()), lines


def test_an_adapter_is_trained_beside_texts_and_evaluated(inside):
    run, manifest, lines = run_of(inside, "adapted")
    assert manifest["lora"] == {"r": 2, "alpha": 32.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    assert manifest["trained_parameters"] == 2 * 2 * ((32 + 32) + (32 + 16))
    assert [line["blend"]["texts"]["rows"] for line in lines] == [3, 3]
    (part,) = manifest["blend"]
    assert part["content_hash"] == json.loads(
        (inside.snapshot_of("texts") / "manifest.json").read_text()
    )["content_hash"]  # fmt: skip
    assert manifest["first_batch_gap"] < 1e-4
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((run / "evaluation.json").read_text())["measures"]


def test_a_moving_reference_needs_no_score(inside):
    _, manifest, lines = run_of(inside, "moving")
    assert manifest["reference"] == {"alpha": 0.5, "tau": 1}
    assert [line["reference_moved"] for line in lines] == [True, True]


def changed(name: str, old: str, new: str, folder: Path) -> engine.Spec:
    text = (Path("specs") / f"{name}.yaml").read_text()
    assert text.count(old) == 1
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(old, new))
    return read(path)[0]


def test_a_run_is_named_by_its_blend_and_a_coefficient_of_zero_by_none(inside, tmp_path):
    def run_id(old: str, new: str) -> str:
        spec = changed("adapted", old, new, tmp_path)
        return engine.run_id(spec, engine.current_snapshot(spec, inside), inside)

    named = run_of(inside, "adapted")[0].name
    assert run_id("coefficient: 0.5", "coefficient: 0.5") == named
    assert run_id("coefficient: 0.5", "coefficient: 0.25") != named
    assert run_id("r: 2", "r: 4") != named
    assert run_id("coefficient: 0.5", "coefficient: 0") == run_id(f", blend: {BLEND}", "")


def test_a_changed_snapshot_of_a_blend_is_another_run(inside, tmp_path, monkeypatch):
    spec = read(Path("specs/adapted.yaml"))[0]
    data = engine.current_snapshot(spec, inside)
    before = engine.run_id(spec, data, inside)
    paired = inside.snapshot_of("moving")
    monkeypatch.setattr(Workspace, "snapshot_of", lambda *_: paired)
    assert engine.run_id(spec, data, inside) != before


def test_a_snapshot_that_was_built_may_be_blended_without_its_spec(inside, capfd):
    assert run_command(["check", "specs/adapted.yaml"]) == 0
    assert run_command(["check", "specs/adapted.yaml", "--workspace", "nowhere"]) == 1
    assert "no spec named 'texts' here and no snapshot of it" in capfd.readouterr().err
    with pytest.raises(ValueError, match="no snapshot of 'texts' in nowhere"):
        engine.train_arguments(read(Path("specs/adapted.yaml"))[0], Workspace(Path("nowhere")))


def test_a_policy_with_an_adapter_may_be_a_model_of_a_spec(inside, tmp_path):
    run, manifest, _ = run_of(inside, "adapted")
    spec = changed("moving", "model: model", f"model: {{path: model, adapter: {run / 'adapter'}}}", tmp_path)
    from rlhf_data.scoring.identity import content_hash

    assert content_hash(spec.train.model, tmp_path) == manifest["adapted_model_hash"]
