"""`keep_columns`: raw columns that reach the published rows."""

import csv
import json

import polars as pl
import pytest

from rlhf_data import tables
from rlhf_data.cli import run_command
from rlhf_data.snapshot import Snapshot
from rlhf_data.sources import readers
from tests.project import SPEC

KEEP = SPEC.replace("path: raw/*.jsonl", "path: raw/*.jsonl, keep_columns: [language, task]")
ROWS = [
    {
        "prompt": f"question {p}?",
        "completion": f"answer {a}",
        "rating": 1 + a,
        "language": "de" if p % 2 else None,
        "task": {"no": a} if p == 3 else a,
        "unused": 1,
    }
    for p in range(6)
    for a in range(3)
]


def kept(project, text=KEEP):
    project.raw(ROWS)
    project.spec(text)
    assert project.build() == 0
    return project.snapshot


def test_a_pair_has_the_value_that_both_its_records_have_and_none_where_they_differ(project):
    rows = kept(project).scan().collect()
    assert [c for c in rows.columns if c.startswith("kept_")] == ["kept_language", "kept_task"]
    asked = [int(turns[0]["content"][9]) for turns in rows["prompt"]]
    assert rows["kept_language"].to_list() == ["de" if p % 2 else None for p in asked]
    assert rows["kept_task"].null_count() == rows.height == 18  # the task is each answer's own


def test_an_answer_has_its_records_value_as_text_and_the_snapshot_says_so(project, capsys):
    snapshot = kept(project, KEEP.replace("to: paired, pairing: all", "to: unpaired"))
    rows = snapshot.scan().collect()
    raw = {(row["prompt"], row["completion"]): row["task"] for row in ROWS}
    wanted = [raw[row["prompt"][0]["content"], row["completion"]] for row in rows.to_dicts()]
    assert rows["kept_task"].to_list() == [json.dumps(value) for value in wanted]
    tables.validate(rows, "unpaired")
    assert "| `kept_task` | string |" in (snapshot.path / "README.md").read_text()
    one = rows.filter(pl.col("kept_language") == "de")["completion_id"][0]
    assert run_command(["explain", one]) == 0
    assert "kept_language de" in capsys.readouterr().out


def test_kept_values_are_content_and_other_raw_columns_are_not(project):
    before = kept(project)
    assert "kept_language" not in (kept(project, SPEC).scan().collect_schema())
    project.raw([{**row, "unused": 2} for row in ROWS])
    project.spec(KEEP)
    assert project.build() == 0
    assert project.snapshot.manifest["content_hash"] == before.manifest["content_hash"]
    project.raw([{**row, "language": "fr"} for row in ROWS])
    assert project.build() == 0
    assert project.snapshot.manifest["content_hash"] != before.manifest["content_hash"]
    assert set(project.snapshot.scan().collect()["kept_language"]) == {"fr"}


def test_the_way_a_file_is_cut_changes_no_kept_value(project, monkeypatch):
    whole = kept(project).scan().collect()
    monkeypatch.setattr(readers, "PIECE_BYTES", 1)
    project.spec(KEEP.replace("snapshots/demo", "snapshots/cut"))
    assert run_command(["build", "demo.yaml", "--workspace", "other"]) == 0
    assert Snapshot(project.folder / "snapshots" / "cut").scan().collect().equals(whole)


def test_columns_of_a_table_and_of_a_query_are_kept_too(project, capsys):
    path = project.folder / "raw" / "r.csv"
    with path.open("w", newline="") as file:
        written = csv.DictWriter(file, ["prompt", "completion", "rating", "language"], extrasaction="ignore")
        written.writeheader()
        written.writerows(ROWS)
    told = KEEP.replace("*.jsonl", "r.csv").replace("language, task", "language")
    project.spec(told)
    assert project.build() == 0
    assert set(project.snapshot.scan().collect()["kept_language"].drop_nulls()) == {"de"}
    query = "SELECT record, prompt, completion, rating FROM raw WHERE language IS NOT NULL"
    project.spec(told.replace("keep_columns", f"sql: '{query}', keep_columns"))
    assert project.build() == 0
    assert project.snapshot.scan().collect()["kept_language"].to_list() == ["de"] * 9
    grouped = "SELECT prompt, completion, max(rating) AS rating FROM raw GROUP BY ALL"  # of no record in particular
    project.spec(told.replace("keep_columns", f"sql: '{grouped}', keep_columns"))
    assert project.build() == 1
    assert "r.csv?sql: keep_columns: no column 'language'" in capsys.readouterr().err


def test_a_column_that_was_kept_before_meets_a_raw_one_under_one_name(project):
    project.raw(ROWS)
    project.raw([{**row, "prompt": f"more {row['prompt']}", "kept_language": "fr"} for row in ROWS], "again.jsonl")
    both = "path: raw/r.jsonl, keep_columns: [language]}\n  b: {path: raw/again.jsonl, keep_columns: [kept_language]"
    project.spec(SPEC.replace("path: raw/*.jsonl", both))
    assert project.build() == 0
    rows = project.snapshot.scan().collect()
    assert sorted(rows["kept_language"].drop_nulls().value_counts().rows()) == [("de", 9), ("fr", 18)]


def test_a_column_that_starts_after_the_records_looked_at_is_kept(project, monkeypatch):
    monkeypatch.setattr(readers, "PEEKED", 3)
    rows = kept(project, KEEP.replace("[language, task]", "[language]")).scan().collect()
    assert rows["kept_language"].null_count() == rows.height / 2


def test_a_column_without_a_value_is_a_column_of_nulls(project):
    project.raw([{**row, "language": None} for row in ROWS])
    project.spec(KEEP.replace("language, task", "language"))
    assert project.build() == 0
    rows = project.snapshot.scan().collect()
    assert rows["kept_language"].null_count() == rows.height == 18


def test_a_column_that_a_later_file_lacks_stops_the_build_by_its_name(project, capsys):
    project.raw([{"prompt": "q", "completion": "a", "rating": 1, "tusk": 1}], "z.jsonl")
    project.raw(ROWS)
    project.spec(KEEP.replace("[language, task]", "[task]"))
    assert project.build() == 1
    assert "z.jsonl: keep_columns: no column 'task'; did you mean 'tusk'?" in capsys.readouterr().err


@pytest.mark.parametrize("do", ["mask", "mark"])
def test_only_masking_refuses_raw_columns_beside_it(do, project, capsys):
    project.raw(ROWS)
    project.spec(KEEP.replace("rate:", f"clean: [{{op: pii, do: {do}}}]\nrate:"))
    assert run_command(["check", "demo.yaml"]) == (do == "mask")
    assert ("raw columns would be published unmasked" in capsys.readouterr().err) == (do == "mask")
