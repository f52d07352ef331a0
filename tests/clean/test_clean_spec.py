"""A spec with every cleaning operation builds; a changed evaluation file, and only what follows it, runs again."""

import json

import polars as pl
import pytest

from rlhf_data.cli import run_command
from tests.project import SPEC

WORDS = ["river", "stone", "glass", "poem", "light", "water", "child", "music", "paper", "cloud", "train", "north"]
CLEAN = """clean:
  - {op: dedup, keys: [prompt, completion], near: 0.9, prefer: highest_rating}
  - {op: decontaminate, against: [evals/*.jsonl], ngram: 13}
  - {op: pii, do: mask, kinds: [email]}
  - {op: pii, do: quarantine, kinds: [phone]}
  - {op: pii, do: mark}
rate:"""
CLUSTERED = SPEC.replace("rate:", CLEAN).replace("test: 0.2", "test: 0.5, by: prompt_cluster, near: 0.8")


def question(number: int) -> str:
    return " ".join(f"{word}{chr(97 + number)}" for word in ("Why", *WORDS, "so"))


def rows():
    """Six prompts in two variants each, with answers of which one is the same to both."""
    marks = {3: "write to a@d.co", 4: "call 415-555-2671"}
    return [
        {
            "prompt": question(number) + mark,
            "completion": "the same"
            if not a
            else f"answer {a} {'loudly' if mark else 'softly'} {marks.get(number, '')}",
            "rating": 1 + a,
        }
        for number in range(6)
        for a in range(3)
        for mark in ("", "!")
    ]


@pytest.fixture
def cleaned(project):
    project.raw(rows())
    (project.folder / "evals").mkdir()
    leaked = {"question": question(5).upper(), "id": 1}
    (project.folder / "evals" / "e.jsonl").write_text(json.dumps(leaked), encoding="utf-8")
    project.spec(CLUSTERED)
    assert project.build() == 0
    return project


def test_what_is_published_went_through_every_operation(cleaned):
    rows = cleaned.snapshot.scan().collect()
    prompts = rows["prompt"].list.first().struct["content"]
    # Question 5 is in the evaluation file, and of the answers to question 4 one is left.
    assert set(prompts.str.strip_chars("!")) == {question(number) for number in range(4)}
    answers = pl.concat([rows["chosen"], rows["rejected"]])
    assert answers.str.contains("[EMAIL]", literal=True).any()
    assert not answers.str.contains("@|415").any()
    assert cleaned.snapshot.manifest["quarantined"] == 4


def test_variants_of_a_prompt_stand_on_one_side(cleaned):
    rows = cleaned.snapshot.scan().select("split", root=pl.col("prompt").list.first().struct["content"]).collect()
    sides = rows.group_by(pl.col("root").str.strip_chars("!")).agg(
        pl.col("split").n_unique(), n=pl.col("root").n_unique()
    )
    assert sides["split"].to_list() == [1] * sides.height
    assert sides["n"].max() == 2


def test_a_changed_evaluation_file_is_read_again(cleaned, capsys):
    (cleaned.folder / "evals" / "e.jsonl").write_text(json.dumps(["nothing of it"]), encoding="utf-8")
    capsys.readouterr()
    assert run_command(["plan", "demo.yaml", "--json"]) == 2
    steps = {step["step"]: step["why"] for step in json.loads(capsys.readouterr().out)["specs"][0]["steps"]}
    assert not steps["clean:1"]
    assert "raw files changed: e.jsonl" in steps["clean:2"]
    assert steps["clean:3"]
