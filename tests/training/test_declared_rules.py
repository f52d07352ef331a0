"""A spec with a declared rule builds, trains and reports, and follows the file of a user's own rule."""

import json
import sys

import pytest

from rlhf_data import engine, read_spec
from rlhf_data.cli import run_command
from rlhf_data.plan import Workspace
from tests import tiny_model
from tests.project import SPEC, Project, ratings

pytestmark = pytest.mark.usefixtures("one_thread")
FORMULA = '{chosen: "beta * sigmoid(-beta * D)", rejected: "beta * sigmoid(-beta * D)", beta: 0.1}'
SUM = "{sum: [{rule: dpo, beta: 0.1}, {rule: sft, coefficient: 0.1}]}"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    tiny_model.save(tmp_path / "model")
    made = Project(tmp_path)
    made.raw(ratings(6, 3))
    return made


def with_rule(rule: str) -> str:
    score = "score: {model: model, max_length: 64}\npublish:"
    train = f"train: {{rule: {rule}, model: model, max_steps: 1, batch_size: 2}}\n"
    return SPEC.replace("publish:", score) + train


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rule", "name"), [(FORMULA, "chosen = beta * sigmoid"), (SUM, "dpo + 0.1 sft")])
def test_a_declared_rule_goes_from_the_spec_to_the_report(rule, name, project):
    project.spec(with_rule(rule))
    assert run_command(["run", "demo.yaml"]) == 0
    (manifest,) = (project.folder / ".rlhf" / "runs").rglob("manifest.json")
    assert isinstance(json.loads(manifest.read_text())["rule"], dict)
    assert name in (manifest.parent / "report.html").read_text()


def test_a_run_is_another_where_the_file_of_its_rule_changed(project, monkeypatch):
    rule = project.folder / "rule_of_a_test.py"
    text = "def rule(margin: 'Tensor', *, k: float = 1.0) -> 'PairWeights': return PairWeights(margin * k, margin)\n"
    rule.write_text(text)
    monkeypatch.syspath_prepend(str(project.folder))
    project.spec(with_rule("'rule_of_a_test:rule'").replace("max_steps", "k: 2.0, max_steps"))
    assert project.build() == 0
    spec, workspace = read_spec("demo.yaml"), Workspace(project.folder / ".rlhf")
    ids = []
    for more in ("", "\n# another thought\n"):
        rule.write_text(text + more)
        ids.append(engine.run_id(spec, engine.current_snapshot(spec, workspace), workspace))
    assert ids[0] != ids[1]
    sys.modules.pop("rule_of_a_test", None)
