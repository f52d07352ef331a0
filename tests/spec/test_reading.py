"""What a spec means: variables, overrides, the order of specs, the JSON Schema."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlhf_data import spec as specs
from rlhf_data.cli import run_command

PIPELINES = Path(__file__).parents[2] / "pipelines"
RECIPES = sorted(PIPELINES.rglob("*.yaml"))
SPEC = """version: 1
name: {name}
sources: {{a: {{path: raw.jsonl}}}}
shape: {{to: unpaired}}
publish: {{to: "{to}"}}
"""


def write(folder: Path, name: str, *, to: str = "out", more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(name=name, to=to) + more)
    return path


def test_a_variable_comes_from_the_command_then_the_environment_then_its_default(tmp_path, monkeypatch):
    path = write(tmp_path, "one", to="${WHERE:-default}/out")
    monkeypatch.delenv("WHERE", raising=False)
    assert specs.read(path)[0].publish.to == "default/out"
    monkeypatch.setenv("WHERE", "environment")
    assert specs.read(path)[0].publish.to == "environment/out"
    assert specs.read(path, variables={"WHERE": "command"})[0].publish.to == "command/out"


@pytest.mark.parametrize(
    ("written", "value", "meant"),
    [
        ("${RATE}", "1e-4", 1e-4),
        ("${RATE:-0.5}", None, 0.5),
        ("${RATE}", "007", 7),
        ('"${RATE}"', "1e-4", "1e-4"),
        ("${RATE}0", "1.", "1.0"),
        ("${RATE}", "2026-11-23", "2026-11-23"),
        ("${RATE}", "null", "null"),
        ("${RATE}", "a: b", "a: b"),
        ("${RATE}", "true", True),
    ],
)
def test_a_variable_without_quotes_may_be_a_number(tmp_path, monkeypatch, written, value, meant):
    monkeypatch.delenv("RATE", raising=False)
    path = write(tmp_path, "one", more=f"train:\n  rule: dpo\n  model: m\n  beta: {written}\n")
    read, _ = specs.read(path, variables={} if value is None else {"RATE": value})
    assert repr(read.train.parameters["beta"]) == repr(meant)


def test_a_number_in_quotes_is_told_how_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setenv("RATE", "0.5")
    path = write(tmp_path, "one", more='train: {rule: sft, model: m, learning_rate: "${RATE}"}\n')
    with pytest.raises(specs.SpecError, match=r"must be a number, not '0.5'; leave out its quotes"):
        specs.read(path)


def test_an_override_is_yaml_and_wins_over_the_file(tmp_path):
    path = write(tmp_path, "one")
    read, _ = specs.read(path, overrides={"seed": "3", "split.test": "1e-1", "shape.ties": "soft"})
    assert (read.seed, read.split.test, read.shape.ties) == (3, 0.1, "soft")


def test_an_override_reaches_the_entries_of_a_list(tmp_path):
    path = tmp_path / "one.yaml"
    steps = "clean: [{op: dedup, keys: [prompt]}, {op: decontaminate, against: [a.jsonl, b.jsonl]}]"
    path.write_text(SPEC.format(name="one", to="out").replace("shape:", f"{steps}\nshape:"))
    read, _ = specs.read(path, overrides={"clean.1.ngram": "8", "clean.1.against.0": "c.jsonl"})
    assert (read.clean[1].ngram, read.clean[1].against) == (8, ["c.jsonl", "b.jsonl"])
    for wrong in ("clean.2.ngram", "clean.first.ngram", "clean.1.against.2"):
        with pytest.raises(specs.SpecError, match="is no entry of a list of 2, which count from 0"):
            specs.read(path, overrides={wrong: "8"})


def test_an_override_may_add_a_section_that_stands_above_others(tmp_path):
    path = write(tmp_path, "one", more="train: {rule: sft, model: m}\n")
    assert specs.read(path, overrides={"score.model": "m"})[0].score.model == {"path": "m"}


def test_yaml_is_read_as_version_1_2(tmp_path):
    path = write(tmp_path, "no", more="train: {rule: sft, model: m, learning_rate: 1e-4}\n")
    read, _ = specs.read(path)
    assert (read.name, read.train.learning_rate) == ("no", 1e-4)


def test_specs_of_a_folder_come_after_those_whose_runs_they_start_from(tmp_path):
    write(tmp_path, "a", more="train: {rule: sft, model: {run: b}}\n")
    write(tmp_path, "b", more="train: {rule: sft, model: {run: c}}\n")
    write(tmp_path, "c", more="train: {rule: sft, model: m}\n")
    write(tmp_path, "d")
    names = [read.name for read, _ in specs.read_all(tmp_path).values()]
    assert names.index("c") < names.index("b") < names.index("a")
    assert len(names) == 4


def test_specs_of_a_folder_come_after_those_whose_snapshots_they_blend_in(tmp_path):
    write(tmp_path, "a", more="train: {rule: sft, model: m, blend: [{snapshot: b, rule: sft}]}\n")
    write(tmp_path, "b", more="train: {rule: sft, model: m, blend: [{snapshot: c, rule: sft, beta: 2}]}\n")
    write(tmp_path, "c", more="train: {rule: sft, model: m, blend: [{snapshot: c, rule: sft}]}\n")
    read = [read for read, _ in specs.read_all(tmp_path).values()]
    assert [one.name for one in read] == ["c", "b", "a"]
    assert read[1].train.blend[0].parameters == {"beta": 2}


def test_a_parameter_of_the_rule_is_told_from_a_key_of_train(tmp_path):
    path = write(tmp_path, "one", more="train: {rule: kto, model: m, beta: 0.3, epochs: 2}\n")
    read, _ = specs.read(path)
    assert read.train.parameters == {"beta": 0.3}
    assert read.train.epochs == 2.0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_json_schema_takes_every_recipe(recipe):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(specs.json_schema())
    assert list(validator.iter_errors(YAML(typ="safe").load(recipe))) == []


def test_the_json_schema_refuses_a_misspelt_key():
    jsonschema = pytest.importorskip("jsonschema")
    recipe = YAML(typ="safe").load(RECIPES[0]) | {"abuot": "x"}
    assert not jsonschema.Draft202012Validator(specs.json_schema()).is_valid(recipe)


def test_init_prints_the_json_schema(capsys):
    assert run_command(["init", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == specs.json_schema()
