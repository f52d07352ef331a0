"""A snapshot says what it is, can be read by anything that reads Parquet, and is opened only when it is whole."""

import json
import os
import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_series_equal

from rlhf_data import ids, snapshot, tables
from rlhf_data.snapshot import Snapshot, content_hash, resolve
from tests.project import SPEC, ratings


def test_a_snapshot_is_opened_by_its_folder_or_that_of_its_versions(built):
    versions = built.folder / "snapshots" / "demo"
    (name,) = built.versions
    assert Snapshot(versions).id == Snapshot(str(versions / name)).id == name


def test_rows_are_scanned_by_split_and_keep_the_contract(built):
    opened = built.snapshot
    assert opened.manifest["rows"].keys() == {"train", "test"}
    for split, n in opened.manifest["rows"].items():
        rows = opened.scan(split).collect()
        assert (rows.height, rows["split"].unique().to_list()) == (n, [split])
        tables.validate(rows, "paired")
    assert opened.scan().collect().height == sum(opened.manifest["rows"].values())
    with pytest.raises(ValueError, match=r"has no split 'tset'; it has train, test"):
        opened.scan("tset")


@pytest.mark.parametrize("table", ["paired", "unpaired"])
def test_ids_texts_and_lineage_of_a_published_row_are_those_of_its_answers(table, built):
    if table == "unpaired":
        built.spec(SPEC.replace("to: paired, pairing: all", "to: unpaired"))
        assert built.build() == 0
    rows = built.snapshot.scan().collect()
    raw = {row["completion"]: (k, row) for k, row in enumerate(ratings())}
    assert_series_equal(rows["prompt_id"], ids.prompt_ids(rows["prompt"]))
    for side in ("completion",) if table == "unpaired" else ("chosen", "rejected"):
        found = ids.completion_ids(rows["prompt_id"], rows[side]).alias(f"{side}_id")
        assert_series_equal(rows[f"{side}_id"], found)
        asked = [messages[0]["content"] for messages in rows["prompt"].to_list()]
        assert asked == [raw[text][1]["prompt"] for text in rows[side]]
    if table == "paired":
        assert_series_equal(rows["pair_id"], ids.pair_ids(rows["chosen_id"], rows["rejected_id"], "pair_id"))
        behind = [
            [f"r.jsonl#{record}" for record in sorted(raw[text][0] for text in pair)]
            for pair in rows.select("chosen", "rejected").iter_rows()
        ]
    else:
        behind = [[f"r.jsonl#{raw[text][0]}"] for text in rows["completion"]]
    assert rows["raw_ref"].to_list() == behind
    assert rows["category"].to_list() == [
        raw[text][1]["category"] for text in rows["completion" if table == "unpaired" else "chosen"]
    ]


def test_polars_reads_the_files_as_they_lie_there(built):
    found = pl.scan_parquet(built.snapshot.path / "data" / "*.parquet").collect()
    assert found.height == built.snapshot.scan().collect().height
    assert [p.name for p in built.snapshot.files()] == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]


def test_datasets_reads_the_folder_with_its_splits(built):
    script = """
import sys, datasets
found = datasets.load_dataset(sys.argv[1])
from rlhf_data.snapshot import Snapshot
snapshot = Snapshot(sys.argv[1])
assert {name: part.num_rows for name, part in found.items()} == snapshot.manifest["rows"]
assert found["train"][0]["prompt"][0]["role"] == "user"
assert snapshot.dataset("test").num_rows == snapshot.manifest["rows"]["test"]
assert snapshot.dataset().keys() == found.keys()
"""
    home = {"HF_HOME": str(built.folder / "hf"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(built.snapshot.path)],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_snapshot_holds_everything_that_says_where_it_comes_from(built):
    names = {str(p.relative_to(built.snapshot.path)) for p in built.snapshot.path.rglob("*") if p.is_file()}
    assert {"README.md", "manifest.json", "report.html", "spec.lock.yaml", "_SUCCESS"} <= names
    assert "quarantine/quarantine.parquet" in names
    manifest = built.snapshot.manifest
    for file in manifest["files"]:
        path = built.snapshot.path / file["path"]
        assert (path.stat().st_size, pl.read_parquet(path).height) == (file["bytes"], file["rows"])
    (raw,) = manifest["sources"]["a"]["files"]
    assert raw["bytes"] == (built.folder / "raw" / "r.jsonl").stat().st_size


def test_a_record_that_changes_no_row_is_told_of_in_a_new_version(project):
    rows = [{**row, "label": "good" if row["rating"] > 3 else "bad"} for row in ratings(3)]
    label = "{from: label, map: {good: true, bad: false, skip: null}}"
    columns = f"{{path: raw/*.jsonl, columns: {{prompt: prompt, completion: completion, label: {label}}}}}"
    spec = SPEC.replace("{path: raw/*.jsonl}", columns).replace(
        "rate: {by: rating, scale: [1, 5]}", "rate: {by: label}"
    )
    project.spec(spec.replace("to: paired, pairing: all", "to: unpaired"))
    project.raw(rows)
    assert project.build() == 0
    first = project.snapshot
    assert project.build() == 0 and project.snapshot.id == first.id
    project.raw([*rows, {"prompt": "question 0?", "completion": "new", "label": "skip"}])
    assert project.build() == 0
    last = project.snapshot
    assert last.id != first.id and last.manifest["content_hash"] == first.manifest["content_hash"]
    assert (first.manifest["sources"]["a"]["records"], last.manifest["sources"]["a"]["records"]) == (12, 13)


def test_another_model_of_the_answers_is_another_snapshot(project):
    project.raw([{**row, "wrong": "m1", "right": "m2"} for row in ratings(3)])
    spec = SPEC.replace("to: paired, pairing: all", "to: unpaired")
    for column, model in {"wrong": "m1", "right": "m2"}.items():
        columns = f"{{prompt: prompt, completion: completion, rating: rating, model: {column}}}"
        project.spec(spec.replace("{path: raw/*.jsonl}", f"{{path: raw/*.jsonl, columns: {columns}}}"))
        assert project.build() == 0
        assert project.snapshot.scan().collect()["model"].unique().to_list() == [model]
    assert len(project.versions) == 2


def test_the_locked_spec_builds_the_same_again(built):
    first = built.snapshot
    built.spec((first.path / "spec.lock.yaml").read_text())
    assert built.build() == 0
    assert built.snapshot.id == first.id


def test_what_was_refused_is_in_the_quarantine_with_its_row(built):
    refused = tables.read(built.snapshot.path / "quarantine" / "quarantine.parquet", "quarantine")
    assert refused.select("step", "code").rows() == [("read", "json.invalid"), ("rate", "rating.out_of_scale")]
    assert all(json.loads(row) for row in refused["row"])
    assert refused["raw_ref"].to_list() == [["r.jsonl#48"], ["r.jsonl#49"]]


def test_the_accounting_of_every_step_leads_into_the_next(built):
    steps = {(c["step"], c["unit"]): c for c in built.snapshot.manifest["accounting"]}
    assert steps["read:a", "records"]["rows_in"] == 50
    assert steps["read:a", "observations"]["out"] == steps["rate", "judgments"]["rows_in"]
    assert steps["shape", "candidate pairs"]["out"] == steps["weigh", "rows"]["rows_in"]
    assert steps["weigh", "rows"]["out"] == sum(built.snapshot.manifest["rows"].values())


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "no _SUCCESS", "a latest that is gone"])
def test_a_folder_that_is_no_whole_snapshot_is_refused(what, tmp_path):
    folder = tmp_path / "snapshots"
    if what != "nothing":
        folder.mkdir()
    if what == "no _SUCCESS":
        (folder / "manifest.json").write_text("{}")
    if what == "a latest that is gone":
        (folder / "refs").mkdir()
        (folder / "refs" / "latest").write_text("gone\n")
    with pytest.raises(ValueError, match=r"no finished snapshot at .*build it first"):
        resolve(folder)


def test_a_snapshot_whose_success_is_gone_is_published_again(built):
    (built.snapshot.path / "_SUCCESS").unlink()
    with pytest.raises(ValueError, match="no finished snapshot"):
        resolve(built.folder / "snapshots" / "demo")
    assert built.build() == 0
    assert built.snapshot.manifest["rows"]


def rows(**changes) -> pl.DataFrame:
    row = {"prompt_id": "p" * 32, "pair_id": "i" * 32, "chosen_id": "a" * 32, "rejected_id": "b" * 32, "weight": 1.0}
    row |= {"preference": 1.0, "source": "s", "split": "train", "raw_ref": ["f#0"]}
    row |= {"prompt": [{"role": "user", "content": "?"}], "chosen": "yes", "rejected": "no"}
    return tables.conform(pl.DataFrame([row | changes], infer_schema_length=None), "paired")


@pytest.mark.parametrize(
    "change",
    [{"weight": 2.0}, {"split": "test"}, {"preference": 0.5}, {"margin": 0.0}, {"category": ""}, {"raw_ref": ["f#1"]}],
    ids=lambda change: next(iter(change)),
)
def test_the_content_hash_changes_with_every_data_column(change):
    assert content_hash([rows(**change)]) != content_hash([rows()])


@pytest.mark.parametrize("change", [{"ref_chosen_logps": -1.0}, {"chosen_n_tokens": 3}, {"truncated": True}], ids=str)
def test_the_content_hash_does_not_change_with_scores_whose_last_digits_are_a_devices(change):
    assert content_hash([rows(**change)]) == content_hash([rows()])


def test_a_split_without_rows_has_no_file(project):
    project.spec(SPEC.replace("split: {test: 0.2}\n", ""))
    assert project.build() == 0
    assert [p.name for p in project.snapshot.files()] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("files", "times"),
    [([], []), ([3], [[3]]), ([9, 9, 9], [[9], [9], [9]]), ([5, 5, 5, 1], [[5, 5], [5, 1]]), ([2, 2, 1], [[2, 2, 1]])],
    ids=str,
)
def test_texts_are_fetched_for_files_of_about_so_many_bytes(files, times, monkeypatch):
    monkeypatch.setattr(snapshot, "TEXT_AT_ONCE", 80)
    parts = [(f"{k}.parquet", rows().clear(n)) for k, n in enumerate(files)]
    found = snapshot._together(parts, row_bytes=10.0)
    assert [[held.height for _, held in few] for few in found] == times
    assert [name for few in found for name, _ in few] == [name for name, _ in parts]
