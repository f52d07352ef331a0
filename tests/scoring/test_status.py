"""What is stored and what is missing is said before a model is loaded; commands look after the store."""

import json
import shutil
import subprocess
import sys

import pytest

from rlhf_data.cli import run_command
from tests import tiny_model
from tests.project import SPEC, Project, ratings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    tiny_model.save(tmp_path / "model")
    tiny_model.save(tmp_path / "old", seed=1)
    made = Project(tmp_path)
    made.raw([*ratings(3, 3), {"prompt": "question 0?", "completion": "<|im_end|>", "rating": 3}])
    scoring = "score: {model: model, max_length: 64, dtype: float32, references: {old: {model: old}}}\n"
    shaped = SPEC.replace("{to: paired, pairing: all}", "{to: unpaired}")
    made.spec(shaped.replace("publish:", scoring + "publish:"))
    return made


def status(capfd) -> dict[str, dict]:
    capfd.readouterr()
    assert run_command(["score", "demo.yaml", "--status", "--json"]) == 0
    (told,) = json.loads(capfd.readouterr().out)
    return {one["reference"]: one for one in told["references"]}


def counts(one: dict) -> dict[str, int]:
    return {name: one[name] for name in ("completions", "stored", "missing", "refused", "new")}


def test_the_status_counts_what_is_there_what_is_missing_and_what_was_refused(project, capfd):
    nothing = {"completions": 10, "stored": 0, "missing": 10, "refused": 0, "new": 10}
    assert {name: counts(one) for name, one in status(capfd).items()} == {"ref": nothing, "old": nothing}
    assert not (project.folder / ".rlhf" / "scores").exists()  # asking leaves nothing behind
    assert run_command(["score", "demo.yaml"]) == 0
    whole = {"completions": 10, "stored": 9, "missing": 0, "refused": 1, "new": 0}
    found = status(capfd)
    assert {name: counts(one) for name, one in found.items()} == {"ref": whole, "old": whole}
    assert found["ref"]["tokens"] == found["old"]["tokens"] and found["ref"]["tokens"]["stored"] >= 9
    for folder in (project.folder / ".rlhf" / "scores").glob("*/shard-*"):
        folder.unlink()
    lost = status(capfd)["ref"]
    assert counts(lost) == {**whole, "stored": 0, "missing": 9}
    assert lost["tokens"] == {"stored": 0, "missing": found["ref"]["tokens"]["stored"]}


def test_an_automatic_dtype_is_told_for_both_kinds_of_machine(project, capfd):
    spec = (project.folder / "demo.yaml").read_text()
    project.spec(spec.replace("dtype: float32", "dtype: auto").replace(", references: {old: {model: old}}", ""))
    assert run_command(["score", "demo.yaml", "--status"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[1].split() for line in lines] == [["ref", "model", "float32"], ["ref", "model", "bfloat16"]]
    assert "0 of 10 completions stored (0 tokens), 10 missing (0 tokens known, 10 texts new)" in lines[0]


def test_the_status_loads_no_torch(project):
    code = (
        "import sys\nfrom rlhf_data.cli import run_command as run\n"
        "assert run(['score', 'demo.yaml', '--status']) == 0\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_store_is_compacted_and_merged_by_command(project, capfd):
    assert run_command(["scores", "compact"]) == 0
    assert capfd.readouterr().out == "the store is empty\n"
    assert run_command(["score", "demo.yaml"]) == 0
    capfd.readouterr()
    assert run_command(["scores", "compact", "--json"]) == 0
    assert {(one["before"], one["now"]) for one in json.loads(capfd.readouterr().out)} == {(1, 1)}
    shutil.move(project.folder / ".rlhf" / "scores", project.folder / "theirs")
    assert status(capfd)["ref"]["missing"] == 10
    assert run_command(["scores", "merge", "theirs"]) == 0
    assert "9 taken over, 0 here already" in capfd.readouterr().out
    assert status(capfd)["ref"]["missing"] == 0
    assert run_command(["scores", "merge", "theirs", "--json"]) == 0
    assert {one["added"] for one in json.loads(capfd.readouterr().out)} == {0}
    assert run_command(["scores", "merge", "raw"]) == 1
    assert "raw holds no scores: give the folder `scores` of another workspace" in capfd.readouterr().err
