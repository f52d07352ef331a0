"""Where a row comes from: by pair, completion, prompt and raw record, with and without the steps' tables."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_data.cli import run_command
from rlhf_data.inspect.explain import explain
from rlhf_data.plan import Workspace
from rlhf_data.sources.record import record_at
from tests.project import SPEC, ratings

WORK = Workspace(Path(".rlhf"))
DECLARED = """clean:
  - {op: filter, where: "length(completion) < 100"}
rate:"""
WEIGH = """weigh: {weight: {category: {x: 2.0}, row: margin, clip: 1.2, normalize: mean_one}}
publish:"""


@pytest.fixture
def traced(set_aside, monkeypatch):
    """Two annotators of the first two prompts; a broken line, a rating off the scale and an answer that is filtered."""
    with set_aside.copied("traced", build, monkeypatch) as project:
        yield project


def build(project):
    rows = [*ratings(), *({**row, "annotator": "bob", "rating": max(1, row["rating"] - 1)} for row in ratings(2))]
    wrong = ["{broken", {"prompt": "question 0?", "completion": "too good", "rating": 11}]
    project.raw([*rows, *wrong, {"prompt": "question 1?", "completion": "long " * 30, "rating": 4}])
    project.spec(SPEC.replace("rate:", DECLARED).replace("publish:", WEIGH))
    assert project.build() == 0


def of(project, wanted):
    return explain(wanted, project.snapshot, WORK)


def pair_of(project, chosen, rejected):
    rows = project.snapshot.scan().collect()
    return next(r for r in rows.iter_rows(named=True) if (r["chosen"], r["rejected"]) == (chosen, rejected))


def test_a_pair_is_traced_to_its_records_and_every_number_to_its_arithmetic(traced):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    found = of(traced, row["pair_id"][:12])
    assert (found["kind"], found["id"], len(found["rows"])) == ("pair", row["pair_id"], 1)
    # ratings 5 and 4 against 1 and 1, on a scale of 1 to 5
    assert sorted(j["value"] for j in found["judgments"]) == [1, 1, 4, 5]
    assert {j["annotator"] for j in found["judgments"]} == {None, "bob"}
    said = {step["step"]: " ".join(step["said"]) for step in found["steps"]}
    assert "rating 4.5 = mean of 4, 5; reward 0.875 = (4.5 − 1) / (5 − 1)" in said["rate"]
    assert "margin 0.875 = 0.875 − 0" in said["shape"]
    # 2 · 0.875 is over the clip; the mean over train rows is what is left to divide by
    assert f"= 1.2 (clip of 2 (category x) · 0.875 (margin)) / {1.2 / row['weight']:.6g}" in said["weigh"]
    assert said["split"].startswith(row["split"])
    assert found["records"][0]["record"] == ratings()[0]
    assert {r["state"] for r in found["records"]} == {"as it was read"}
    assert {r["raw_ref"] for r in found["records"]} == set(row["raw_ref"])


def test_a_completion_and_a_prompt_name_the_rows_they_are_in(traced):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    answer = of(traced, row["chosen_id"])
    assert (answer["kind"], len(answer["rows"]), len(answer["judgments"])) == ("completion", 3, 2)
    prompt = of(traced, row["prompt_id"])
    assert (prompt["kind"], len(prompt["rows"])) == ("prompt", 6)
    assert [fate["step"] for fate in prompt["fate"]] == ["rate"]  # the one that is too good


def test_a_record_says_which_step_left_it_out(traced):
    broken, refused, filtered, used = (of(traced, f"r.jsonl#{n}") for n in (56, 57, 58, 0))
    assert [row["code"] for row in broken["refused"]] == ["json.invalid"]
    assert broken["records"][0]["record"] == "{broken"
    assert [row["code"] for row in refused["refused"]] == ["rating.out_of_scale"]
    assert [fate["step"] for fate in refused["fate"]] == ["rate"]
    assert [fate["step"] for fate in filtered["fate"]] == ["clean:1"]
    assert filtered["fate"][0]["declared"] == {"op": "filter", "where": "length(completion) < 100"}
    assert (used["fate"], len(used["rows"])) == ([], 3)
    assert of(traced, "r.jsonl#59") is None


def test_without_the_chunks_the_snapshot_still_says_what_it_knows(traced, capsys):
    shutil.rmtree(".rlhf/chunks")
    pair = traced.snapshot.scan().collect()["pair_id"][0]
    assert run_command(["explain", pair]) == 0
    assert "chosen: reward" in capsys.readouterr().out


def test_a_damaged_table_of_a_step_is_told_with_its_cure(traced, capsys):
    pair = traced.snapshot.scan().collect()["pair_id"][0]
    for path in Path(".rlhf/steps").glob("*/judgments.parquet"):
        path.write_bytes(b"PAR1")
    assert run_command(["explain", pair]) == 1
    assert "a table of .rlhf/steps is damaged" in capsys.readouterr().err


def test_a_damaged_lock_is_named(traced, capsys):
    (traced.snapshot.path / "spec.lock.yaml").write_text("{x")
    assert run_command(["explain", traced.snapshot.scan().collect()["pair_id"][0]]) == 1
    assert "spec.lock.yaml is damaged: remove" in capsys.readouterr().err


def test_without_the_steps_the_snapshot_still_says_what_it_knows(traced, capsys):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    shutil.rmtree(".rlhf/steps")
    found = of(traced, row["pair_id"])
    assert found["judgments"] is None
    assert {r["raw_ref"] for r in found["records"]} == set(row["raw_ref"])
    said = {step["step"]: " ".join(step["said"]) for step in found["steps"]}
    assert "chosen: reward 0.875" in said["rate"]
    assert "margin 0.875 = 0.875 − 0" in said["shape"]
    assert of(traced, "r.jsonl#56")["refused"]
    capsys.readouterr()
    assert run_command(["explain", row["pair_id"]]) == 0
    assert "not in the workspace any more" in capsys.readouterr().out


def test_a_record_is_shown_only_as_it_was_read(traced):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    traced.raw(ratings(3))
    changed = of(traced, row["pair_id"])["records"]
    assert {(r["state"][:20], r["record"]) for r in changed} == {("the file has changed", None)}
    (traced.folder / "raw" / "r.jsonl").unlink()
    assert "not there any more" in of(traced, row["pair_id"])["records"][0]["state"]


def test_compared_answers_show_their_votes(project):
    votes = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 2 + [{"prompt": "q", "chosen": "b", "rejected": "a"}]
    project.raw(votes)
    project.spec(SPEC.replace("rate: {by: rating, scale: [1, 5]}", "rate: {by: votes}"))
    assert project.build("--set", "split.test=0") == 0
    (row,) = project.snapshot.scan().collect().to_dicts()
    found = of(project, row["pair_id"])
    said = {step["step"]: " ".join(step["said"]) for step in found["steps"]}
    assert "preferred with probability 0.666667 = mean of 0, 1, 1 (3 votes)" in said["rate"]
    assert "preference 0.666667" in said["shape"]


def test_files_of_one_name_in_two_sources_are_told_apart(project):
    first, second = ratings(2), [{**row, "prompt": f"other {row['prompt']}"} for row in ratings(2)]
    for name, rows in {"r.jsonl": first, "b/r.jsonl": second}.items():
        (project.folder / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        project.raw(rows, name)
    project.spec(SPEC.replace("a: {path: raw/*.jsonl}", "a: {path: raw/r.jsonl}\n  b: {path: raw/b}"))
    assert project.build() == 0
    asked = of(project, "r.jsonl#0")
    assert [(r["source"], r["record"]) for r in asked["records"]] == [("a", first[0]), ("b", second[0])]
    rows = project.snapshot.scan().collect()
    of_second = of(project, rows.filter(source="b", raw_ref=["r.jsonl#0", "r.jsonl#1"])["pair_id"][0])
    assert [(r["source"], r["record"]) for r in of_second["records"]] == [("b", row) for row in second[:2]]


def test_an_answer_of_an_unpaired_snapshot_is_traced(project):
    project.spec(SPEC.replace("to: paired, pairing: all", "to: unpaired, label: threshold, threshold: 0.5"))
    assert project.build() == 0
    row = project.snapshot.scan().collect().row(0, named=True)
    found = of(project, row["completion_id"][:16])
    assert found["rows"][0]["completion"] == row["completion"]
    said = {step["step"]: " ".join(step["said"]) for step in found["steps"]}
    assert f"rating {row['rating']:g}" in said["rate"]
    assert said["shape"] == f"label {row['label']}"
    assert len(found["records"]) == 1


def test_the_command_prints_what_a_person_asks_and_names_what_is_known(traced, capfd):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    capfd.readouterr()
    assert run_command(["explain", row["pair_id"][:10]]) == 0
    shown = capfd.readouterr().out
    for expected in ("question 0?", "answer 2 to 0", "rate ", "judgments", "bob", "raw/r.jsonl", "as it was read"):
        assert expected in shown
    assert run_command(["explain", row["pair_id"], "demo", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["id"] == row["pair_id"]
    for arguments, message in {
        ("f" * 32,): "nothing is known of 'ffff",
        ("ab",): "too little of an id: give its first 4 characters",
        (row["pair_id"], "nope"): "no finished snapshot at nope",
    }.items():
        assert run_command(["explain", *arguments]) == 1
        assert message in capfd.readouterr().err


def test_a_snapshot_is_asked_before_a_quick_look_of_it(traced, capfd):
    assert traced.build("--limit", "30") == 0
    capfd.readouterr()
    assert run_command(["explain", "r.jsonl#0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["snapshot"] == str(traced.snapshot.path)


def test_an_id_that_two_things_share_is_refused_with_both(traced, monkeypatch):
    from rlhf_data.inspect import explain as module

    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    shared = next(  # the longest beginning that is still shared
        row["pair_id"][:n] for n in range(1, 32) if len(_beginning(traced, row["pair_id"][:n])) < 3
    )[:-1]
    monkeypatch.setattr(module, "SHORTEST", 1)
    with pytest.raises(ValueError, match=rf"ids begin with '{shared}': (pair|completion|prompt) {shared}"):
        of(traced, shared)


def _beginning(project, prefix):
    rows = project.snapshot.scan().select("pair_id", "chosen_id", "rejected_id", "prompt_id").collect()
    return {value for column in rows for value in column if value.startswith(prefix)}


def test_explaining_loads_no_torch_and_no_pandera(traced):
    row = pair_of(traced, "answer 2 to 0", "answer 0 to 0")
    code = f"import sys; from rlhf_data.cli import run_command as run; assert run(['explain', '{row['pair_id']}']) == 0"
    script = f"{code}; print(sys.modules.keys() & {{'torch', 'transformers', 'pandera', 'prefect', 'datasets'}})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet"])
def test_a_record_is_read_by_its_number_from_every_format(name, tmp_path):
    import polars as pl

    rows = [{"prompt": f"q{k}", "answer": f"two\nlines {k}"} for k in range(5)]
    path, frame = tmp_path / name, pl.DataFrame(rows)
    if name == "r.jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    elif name == "r.json":
        path.write_text(json.dumps(rows))
    else:
        getattr(frame, "write_csv" if name == "r.csv" else "write_parquet")(path)
    assert [record_at(path, k) for k in (3, 0, 4)] == [rows[3], rows[0], rows[4]]
    with pytest.raises(ValueError, match="has no record 5"):
        record_at(path, 5)
