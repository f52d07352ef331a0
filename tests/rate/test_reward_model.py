"""A reward model in the place of ratings: from pairs through a trained run to labels of unpaired answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from rlhf_data import engine
from rlhf_data.cli import run_command
from rlhf_data.ids import MESSAGES
from rlhf_data.rate.reward_model import reward
from rlhf_data.snapshot import Snapshot
from rlhf_data.world import generate, ratings

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = "{prompt: question, completion: answer, rating: rating, category: category}"
REWARD = f"""version: 1
name: reward
sources:
  world: {{path: world/raw/ratings.jsonl, columns: {COLUMNS}}}
rate: {{by: rating, scale: [1, 5]}}
split: {{test: 0.2}}
shape: {{to: paired, pairing: best_vs_worst}}
publish: {{to: snapshots/reward}}
train: {{rule: rm, centre: 0.01, model: world/model, epochs: 6, batch_size: 16, learning_rate: 3e-3, max_length: 48}}
evaluate: {{by: category}}
"""
RELABELLED = """version: 1
name: relabelled
sources:
  unrated: {path: raw/*.jsonl}
rate: {by: reward_model, reward_model: {run: reward}}
shape: {to: unpaired, label: prompt_mean}
publish: {to: snapshots/relabelled}
train: {rule: unlikelihood_unpaired, model: world/model, max_steps: 2, batch_size: 16, max_length: 48}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained reward model and answers that nobody rated, each prompt's best one first."""
    folder = tmp_path_factory.mktemp("paths")
    before = Path.cwd()
    os.chdir(folder)
    try:
        generate("world", prompts=80)
        (folder / "reward.yaml").write_text(REWARD)
        (folder / "relabelled.yaml").write_text(RELABELLED)
        answers(folder, 80, 110)
        assert run_command(["plan", "relabelled.yaml"]) == 1  # there is no such run yet, and no spec of it beside
        assert run_command(["plan", "."]) == 2
        assert run_command(["run", "reward.yaml"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def answers(folder: Path, first: int, last: int) -> None:
    """Raw answers of prompts that the reward model has not seen, without any rating."""
    rows = [
        {"prompt": question, "completion": row["answer"], "category": category}
        for category, question in list(ratings.questions(last, seed=0))[first:]
        for row in ratings.rows(category, question, seed=0)
        if row["annotator"] == "ada"
    ]
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(name: str) -> tuple[pl.DataFrame, dict]:
    opened = Snapshot(Path("snapshots") / name)
    return pl.read_parquet(opened.path / "data" / "*.parquet"), opened.manifest


def steps(capsys, name: str) -> dict[str, bool]:
    capsys.readouterr()
    run_command(["plan", f"{name}.yaml", "--json"])
    return {step["step"]: step["runs"] for step in json.loads(capsys.readouterr().out)["specs"][0]["steps"]}


def test_a_trained_reward_model_labels_answers_that_nobody_rated(place, capsys):
    assert run_command(["run", "relabelled.yaml"]) == 0
    rows, manifest = rows_of("relabelled")
    assert rows["rating"].null_count() == rows.height and rows["reward"].null_count() == 0
    told = manifest["rating"]["reward_model"]
    assert (told["template"], told["max_length"], told["counts"]["scored"]) == ("chat", 48, rows.height)
    from rlhf_data.world import verify

    grades = [verify(prompt, text) for prompt, text in rows.select("prompt", "completion").iter_rows()]
    graded = rows.with_columns(grade=pl.Series(grades))
    desirable, others = graded.filter("label")["grade"], graded.filter(~pl.col("label"))["grade"]
    assert desirable.mean() > others.mean() + 0.1  # it has learnt from 80 prompts what is better on 30 others
    assert not any(steps(capsys, "relabelled").values())


def test_new_answers_cost_what_they_are(place, capsys):
    answers(place, 80, 118)
    assert steps(capsys, "relabelled")["rate"]
    assert run_command(["build", "relabelled.yaml"]) == 0
    rows, manifest = rows_of("relabelled")
    counts = manifest["rating"]["reward_model"]["counts"]
    assert counts["reused"] > 2 * counts["scored"] > 0 and counts["reused"] + counts["scored"] == rows.height


def test_a_reward_model_that_was_trained_again_rates_again(place, capsys):
    assert run_command(["run", "relabelled.yaml"]) == 0
    assert not any(steps(capsys, "relabelled").values())
    again = place / "reward.yaml"
    again.write_text(REWARD.replace("epochs: 6", "epochs: 1"))
    try:
        assert run_command(["train", "reward.yaml"]) == 0
        assert steps(capsys, "relabelled")["rate"]
    finally:
        again.write_text(REWARD)
        assert run_command(["train", "reward.yaml"]) == 0
    assert not steps(capsys, "relabelled")["rate"]


def test_the_evaluation_of_a_reward_model_is_told_by_category(place):
    (run,) = (path.parent for path in Path(".rlhf/runs/reward").glob("*/evaluation.json"))
    measures = {m["name"]: m["lines"] for m in json.loads((run / "evaluation.json").read_text())["measures"]}
    assert {line["group"] for line in measures["reward accuracy"]} > {None, "politeness", "sorting"}
    assert measures["reward accuracy"][0]["after"]["value"] > 0.6
    assert json.loads((run / "manifest.json").read_text())["rule"] == "rm"


def test_a_spec_may_read_texts_in_another_way_than_the_model_was_trained(place, capsys):
    words = "reward_model: {run: reward}, template: plain, max_length: 32"
    (place / "plain.yaml").write_text(
        RELABELLED.replace("reward_model: {run: reward}", words).replace("relabelled", "plain")
    )
    assert run_command(["build", "plain.yaml"]) == 0
    told = rows_of("plain")[1]["rating"]["reward_model"]
    assert (told["template"], told["max_length"], told["max_prompt_length"]) == ("plain", 32, 24)


def test_a_language_model_is_refused_as_a_reward_model(place, capsys):
    (place / "wrong.yaml").write_text(RELABELLED.replace("{run: reward}", "world/model").replace("relabelled", "wrong"))
    assert run_command(["build", "wrong.yaml"]) == 1
    assert "no reward model: train one with `rule: rm`" in capsys.readouterr().err


def test_relabelling_imports_no_torch_to_plan(place):
    code = (
        "import sys; from rlhf_data.cli import run_command; run_command(['plan', 'relabelled.yaml']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_each_answer_has_a_reward_or_the_code_of_its_refusal(tmp_path):
    schema = {"completion_row": pl.UInt32, "completion_id": pl.String, "prompt": MESSAGES, "completion": pl.String}
    rows = [(k, f"id-{k}", [{"role": "user", "content": "?"}], text) for k, text in enumerate(("a", "bad", "ccc"))]

    def lengths(requests, rewards):
        asked = pl.read_parquet(requests)
        bad = pl.col("completion") == "bad"
        told = asked.select(
            "completion_id",
            reward=pl.when(~bad).then(pl.col("completion").str.len_chars().cast(pl.Float64)),
            refused=pl.when(bad).then(pl.lit("text.special_token")),
        )
        told.reverse().write_parquet(rewards)  # in whatever order
        return {"model": "lengths"}

    found = reward([pl.DataFrame(rows, schema=schema, orient="row")], lengths, tmp_path)
    assert found.rewards.rows() == [(0, 1.0), (2, 3.0)] and found.refused.rows() == [(1, "text.special_token")]
    assert found.recipe == {"model": "lengths"} and not list(tmp_path.iterdir())
    assert reward([], lengths, tmp_path).rewards.height == 0


def test_the_rewarder_is_handed_in_by_the_engine(place):
    assert (
        engine._rewarder({"model": {"path": "m"}}, engine.Workspace(Path(".rlhf"))).keywords["store"].name == "scores"
    )
