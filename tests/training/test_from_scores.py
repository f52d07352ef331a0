"""From a spec to a training step: what a rule reads of its references is scored, published and trained on."""

import json

import polars as pl
import pytest

from rlhf_data import rules
from rlhf_data.cli import run_command
from rlhf_data.plan import Workspace
from rlhf_data.scoring import models
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.spec import read_all
from tests import tiny_model
from tests.project import SPEC, Project, ratings

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRED, UNPAIRED = "{to: paired, pairing: all}", "{to: unpaired, label: prompt_mean}"
PUBLISH = "publish: {to: snapshots/demo}\n"
OLD = "references: {old: {model: old}}"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Project:
    """A few rated answers, a reference, and another model that wrote the answers."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save(tmp_path / "model")
    tiny_model.save(tmp_path / "old", seed=2)
    made = Project(tmp_path)
    made.raw(ratings(3, 3))
    return made


def spec(shape: str, rule: str | None, score: str) -> str:
    scored = f"score: {{model: model, max_length: 64{', ' * bool(score)}{score}}}\n"
    trained = f"train: {{rule: {rule}, model: model, max_steps: 1, batch_size: 4}}\n" if rule else ""
    return SPEC.replace("{to: paired, pairing: all}", shape).replace(PUBLISH, scored + PUBLISH + trained)


@pytest.mark.parametrize(
    ("rule", "shape", "score", "columns"),
    [
        ("ppo_old", UNPAIRED, OLD, ["old_logps"]),
        ("grpo_token", UNPAIRED, OLD, ["old_logps", "old_token_logps", "ref_token_logps"]),
        ("ld_dpo", PAIRED, "", ["ref_chosen_token_logps", "ref_rejected_token_logps"]),
    ],
)
def test_a_rule_is_trained_on_columns_that_only_it_needs(place, rule, shape, score, columns, capfd):
    place.spec(spec(shape, rule, score))
    assert run_command(["run", "demo.yaml"]) == 0, capfd.readouterr().err
    assert set(rules.columns(rule)) - {"reward", "ref_logps"} <= set(columns)
    manifest = place.snapshot.manifest
    assert sorted(manifest["score"]["columns"]) == columns
    rows = place.snapshot.scan().collect()
    assert set(columns) <= set(rows.columns) and not any(rows[column].null_count() for column in columns)
    (folder,) = (place.folder / ".rlhf" / "runs" / "demo").glob("*/_SUCCESS")
    assert json.loads((folder.parent / "manifest.json").read_text())["steps"] == 1
    assert all(f"`{column}`" in (place.snapshot.path / "README.md").read_text() for column in columns)


def test_old_log_probs_are_those_of_the_model_that_is_named_old(place):
    place.spec(spec(UNPAIRED, "ppo_old", OLD + ", publish: [token_logps, mean_log_p2], squares: true"))
    assert place.build() == 0
    rows = place.snapshot.scan().collect()
    assert {"ref_mean_log_p2", "old_mean_log_p2", "ref_token_logps", "old_token_logps"} <= set(rows.columns)
    for name in ("ref", "old"):
        sums = rows[f"{name}_token_logps"].cast(pl.List(pl.Float64)).list.sum()
        assert (sums - rows[f"{name}_logps"]).abs().max() < 1e-9
        assert (rows[f"{name}_token_logps"].list.len() == rows["n_tokens"]).all()
        assert rows[f"{name}_mean_log_p2"].is_between(-10, 0, closed="none").all()
        model, tokenizer = models.load(
            {"path": "model" if name == "ref" else name}, dtype="float32", device="cpu", cache=place.folder
        )
        row = rows.row(3, named=True)
        ids = encode(tokenizer, [row["prompt"]], [row["completion"]], max_length=64)
        ((live,),) = token_logps(model, [Group(ids.prompt_ids[0], [ids.completion_ids[0]])], "packed")
        assert row[f"{name}_token_logps"] == pytest.approx(live.tolist(), abs=1e-4)
    recipes = place.snapshot.manifest["score"]
    assert recipes["references"]["old"]["model_hash"] != recipes["model_hash"]


def test_another_rule_costs_no_forward_and_its_columns_make_another_snapshot(place, capfd):
    place.spec(spec(PAIRED, "dpo", ""))
    assert place.build() == 0
    first = place.snapshot.path
    assert "ref_chosen_token_logps" not in place.snapshot.scan().collect_schema()
    place.spec(spec(PAIRED, "ld_dpo", ""))
    assert place.build() == 0
    counts = place.snapshot.manifest["score"]["counts"]
    assert (counts["scored"], counts["tokens"]) == (0, 0) and counts["reused"] == counts["distinct"] == 9
    assert place.snapshot.path != first
    assert "ref_chosen_token_logps" in place.snapshot.scan().collect_schema()
    assert place.snapshot.manifest["content_hash"] == json.loads((first / "manifest.json").read_text())["content_hash"]


def test_a_judge_that_is_not_trained_keeps_no_plan_waiting(place, capfd):
    (place.folder / "judged").mkdir()
    judge = spec(PAIRED, "rm", "").replace("name: demo", "name: judge").replace("snapshots/demo", "snapshots/judge")
    (place.folder / "judged" / "judge.yaml").write_text(judge)
    mine = spec(PAIRED, "dpo", "") + "evaluate: {reward_model: {run: judge}}\n"
    (place.folder / "judged" / "demo.yaml").write_text(mine)
    run_command(["plan", "judged"])
    assert "waits for" not in capfd.readouterr().out


def test_a_run_of_another_spec_may_be_the_old_policy_and_is_waited_for(place, capfd):
    other = spec(PAIRED, "dpo", "").replace("name: demo", "name: writer").replace("snapshots/demo", "snapshots/writer")
    (place.folder / "specs").mkdir()
    (place.folder / "specs" / "writer.yaml").write_text(other)
    mine = spec(UNPAIRED, "ppo_old", "references: {old: {model: {run: writer}}}")
    (place.folder / "specs" / "demo.yaml").write_text(mine)
    assert [one.name for one, _ in read_all(place.folder / "specs").values()] == ["writer", "demo"]
    assert run_command(["plan", "specs"]) == 2
    assert "demo: waits for writer" in capfd.readouterr().out
    assert run_command(["run", "specs"]) == 0
    trained = Workspace(place.folder / ".rlhf").model_of("writer")
    told = place.snapshot.manifest["score"]["references"]["old"]["model"]
    assert told == {"path": str(trained.relative_to(place.folder))} or told == {"path": str(trained)}


def test_an_old_policy_of_other_tokens_is_refused(place, capfd):
    spaced = tiny_model.CHATML.replace("'\n' + m['content']", "'\n\n' + m['content']")
    assert spaced != tiny_model.CHATML
    tiny_model.tokenizer(spaced).save_pretrained("old")
    place.spec(spec(UNPAIRED, "ppo_old", OLD))
    assert place.build() == 1
    assert "score.references.old reads other tokens than score.model in " in capfd.readouterr().err
