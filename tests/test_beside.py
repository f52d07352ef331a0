"""`generate`: what one or two models write to held-out prompts, in the terminal and in files."""

import json
from pathlib import Path

import polars as pl
import pytest

from rlhf_data.beside import COLUMNS, in_words, name_of, win_rate
from rlhf_data.cli import run_command
from tests import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

ASK = ["generate", "--snapshot", "demo", "--model", "one", "--max-new-tokens", "4", "--prompts", "2", "-n", "2"]
VERIFIER = ["--verifier", "tests.test_sampled:length"]


def found(rewards: dict[str, list[list[float]]]) -> pl.DataFrame:
    """Rows of models' answers to prompts, each model's rewards a list a prompt."""
    rows = [
        {
            "prompt_id": str(p),
            "prompt": [{"role": "user", "content": f"question {p}?"}],
            "category": "x",
            "model": model,
            "sample": k,
            "completion": f"{model} says {reward:g}, and says so in words that go on for longer than a column",
            "n_tokens": 5,
            "finished": True,
            "reward": reward,
        }
        for p in range(2)
        for model, answers in rewards.items()
        for k, reward in enumerate(answers[p])
    ]
    return pl.DataFrame(rows).sort("prompt_id", "model", "sample").select(COLUMNS)


def test_a_win_is_one_a_tie_one_half_and_every_prompt_counts_the_same():
    both = found({"a": [[1.0, 0.0], [2.0, 2.0]], "b": [[0.0, 0.0], [3.0, 2.0]]})
    assert win_rate(both, "a", "b") == pytest.approx(((1 + 1 + 0.5 + 0.5) / 4 + (0.5 + 0.5) / 4) / 2)
    assert win_rate(both, "a", "b") + win_rate(both, "b", "a") == pytest.approx(1)


@pytest.mark.parametrize("width", [60, 120])
def test_two_models_stand_side_by_side_and_lines_keep_within_the_width(width):
    lines = in_words(found({"a": [[1.0], [2.0]], "b": [[0.0], [2.0]]}), width)
    assert all(len(line) <= width for line in lines if "answers" not in line and "meetings" not in line)
    assert any("a (reward 1)" in line and "b (reward 0)" in line for line in lines)
    assert "user: question 0?  [x]" in lines
    assert lines[-1] == "a beats b in 75.0% of meetings; a tie counts one half"


def test_a_model_is_called_by_its_folder():
    assert name_of({"path": "models/qwen"}) == "qwen" and name_of({"path": "runs/demo/abc/model"}) == "abc"
    assert name_of({"path": "other/qwen"}, ["qwen"]) == "other/qwen"


@pytest.fixture
def demo(project):
    assert project.build() == 0
    for seed, name in enumerate(("one", "two")):
        tiny_model.save(project.folder / name, seed)
    return project


def test_one_line_of_json_an_answer_and_the_same_from_the_store(demo, capsys):
    capsys.readouterr()
    shown = []
    for _ in range(2):
        assert run_command([*ASK, "--beside", "two", *VERIFIER, "--json"]) == 0
        shown.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    rows, again = shown
    assert rows == again and len(list(Path(".rlhf/samples").iterdir())) == 2
    assert [(row["model"], row["sample"]) for row in rows] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)] * 2
    assert all(row["reward"] == len(row["completion"]) for row in rows)
    held_out = set(demo.snapshot.scan("test").collect()["prompt_id"])
    assert {row["prompt_id"] for row in rows} <= held_out


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_answers_are_written_to_a_file(demo, suffix, capsys):
    assert run_command([*ASK, "--out", f"out/a.{suffix}"]) == 0
    read = {"jsonl": pl.read_ndjson, "parquet": pl.read_parquet}[suffix](f"out/a.{suffix}")
    assert read.columns == list(COLUMNS) and read.height == 4 and read["reward"].null_count() == 4
    assert "one: 4 answers, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "which model shall write"),
        (["generate", "--model", "one"], "whose prompts shall be answered"),
        (["generate", "demo.yaml"], "demo has no train section"),
        ([*ASK, "--split", "validation"], "has no split 'validation'"),
        ([*ASK, "--out", "a.csv"], r"answers are written as .jsonl or .parquet"),
        ([*ASK, "--engine", "vllm"], "pip install vllm"),
        ([*ASK[:3], "--run", "demo"], "no trained run of 'demo'"),
        (["generate", "--model", "nowhere", "--snapshot", "demo"], "no model folder at nowhere"),
    ],
)
def test_what_cannot_be_shown_is_said(demo, arguments, message, capsys):
    assert run_command(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_specs_policy_stands_beside_the_model_it_started_from(demo, capsys):
    with Path("demo.yaml").open("a") as file:
        file.write("train: {rule: cpo, model: one, max_length: 64, max_steps: 1}\n")
    assert run_command(["run", "demo.yaml"]) == 0
    capsys.readouterr()
    assert run_command(["generate", "demo.yaml", "--max-new-tokens", "3", "--prompts", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == ["demo", "demo before"]


def test_the_page_of_a_run_is_made_anew_while_it_trains(demo, capsys):
    run = Path(".rlhf/runs/demo/abc")
    run.mkdir(parents=True)
    run.joinpath("arguments.json").write_text(json.dumps({"rule": "dpo", "model": {"path": "one"}}))
    run.joinpath("metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    capsys.readouterr()
    assert run_command(["report", str(run)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == run / "report.html" and "loss" in page.read_text()
    run.parent.joinpath("latest").write_text("abc\n")
    assert run_command(["report", str(run.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
