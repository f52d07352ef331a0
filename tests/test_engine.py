"""A build ends whole or not at all, and its result depends on nothing but its inputs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from rlhf_data import engine, files, snapshot
from rlhf_data.plan import Workspace
from rlhf_data.shape import paired
from rlhf_data.spec import read
from tests.project import SPEC, ratings

COMMAND = [sys.executable, "-m", "rlhf_data.cli", "build", "demo.yaml"]


def data_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def test_a_second_build_runs_nothing_and_publishes_nothing(built):
    spec, _ = read(built.folder / "demo.yaml")
    steps = {p: p.stat().st_mtime_ns for p in (built.folder / ".rlhf" / "steps").iterdir()}
    again = engine.build(spec, Workspace(built.folder / ".rlhf"))
    assert again.ran == []
    assert again.counts
    assert {p: p.stat().st_mtime_ns for p in (built.folder / ".rlhf" / "steps").iterdir()} == steps
    assert len(built.versions) == 1
    assert built.left_over == []


def test_a_snapshot_says_which_prompts_changed_sides_since_the_one_before(built):
    assert built.snapshot.manifest["moved"] == {}
    before = built.snapshot.scan().select("prompt_id", "split").unique().collect()
    built.spec(SPEC.replace("test: 0.2", "test: 0.6"))
    assert built.build() == 0
    after = built.snapshot.scan().select("prompt_id", now="split").unique().collect().join(before, on="prompt_id")
    n = after.filter(pl.col("now") != pl.col("split")).height
    assert n > 0
    assert built.snapshot.manifest["moved"] == {"train to test": n}
    assert f"{n} prompts went from train to test" in (built.snapshot.path / "report.html").read_text()


def test_a_prompt_that_joins_two_clusters_may_move_others_and_they_are_counted(project):
    def prompt(number: int, first: str, last: str) -> str:
        middle = [f"n{number}w{k}" for k in range(76)]
        return " ".join(
            [*(f"{first}{number}a{k}" for k in range(12)), *middle, *(f"{last}{number}b{k}" for k in range(12))]
        )

    def rows(first: str, last: str) -> list[dict]:
        return [
            {"prompt": prompt(n, first, last), "completion": f"{r} to {n}", "rating": r}
            for n in range(30)
            for r in (1, 5)
        ]

    project.spec(SPEC.replace("test: 0.2", "test: 0.5, by: prompt_cluster, near: 0.7"))
    project.raw(rows("p", "q") + rows("x", "y"))  # too far apart to be near
    assert project.build() == 0
    before = project.snapshot.scan().select("prompt_id", before="split").unique().collect()
    project.raw(rows("p", "y"), "later.jsonl")  # near both
    assert project.build() == 0
    both = project.snapshot.scan().select("prompt_id", "split").unique().collect().join(before, on="prompt_id")
    moved = both.filter(pl.col("split") != pl.col("before"))
    assert both.height == 60
    assert 0 < moved.height < 60
    assert sum(project.snapshot.manifest["moved"].values()) == moved.height


def test_equal_content_is_not_published_again(built):
    built.spec(SPEC.replace("publish:", "expect: {quarantine_rate: 0.9}\npublish:"))
    assert built.build() == 0
    assert len(built.versions) == 1


def test_a_flipped_byte_in_a_cached_table_is_noticed_and_removing_the_step_mends_it(built, capfd):
    content = built.snapshot.manifest["content_hash"]
    (rows,) = [p for p in (built.folder / ".rlhf" / "steps").glob("*/rows.parquet") if not list(p.parent.glob("q*"))]
    damaged = bytearray(rows.read_bytes())
    damaged[200] ^= 1
    rows.write_bytes(damaged)
    shutil.rmtree(built.folder / "snapshots")
    assert built.build() == 1
    assert f"{rows.name} is damaged: remove" in capfd.readouterr().err
    shutil.rmtree(rows.parent)
    assert built.build() == 0
    assert built.snapshot.manifest["content_hash"] == content


def test_a_card_that_says_something_else_is_published(built):
    built.spec(SPEC.replace("Rated answers", "Judged answers"))
    assert built.build() == 0
    assert len(built.versions) == 2 and "Judged answers" in (built.snapshot.path / "README.md").read_text()


def test_going_back_makes_the_older_snapshot_the_latest_again(built):
    first = built.snapshot.id
    built.spec(SPEC.replace("pairing: all", "pairing: adjacent"))
    assert built.build() == 0
    assert (second := built.snapshot).id != first
    assert second.manifest["parent"] == first
    built.spec(SPEC)
    assert built.build() == 0
    assert built.snapshot.id == first
    assert len(built.versions) == 2


def test_a_snapshot_that_was_removed_is_published_again_from_the_cache(built):
    content = built.snapshot.manifest["content_hash"]
    shutil.rmtree(built.folder / "snapshots")
    spec, _ = read(built.folder / "demo.yaml")
    assert engine.build(spec, Workspace(built.folder / ".rlhf")).ran == ["publish"]
    assert built.snapshot.manifest["content_hash"] == content


def test_a_failed_step_leaves_nothing_and_the_next_build_goes_on_from_there(project, monkeypatch, capfd):
    def broken(*_, **__):
        raise ValueError("the step is broken")

    with monkeypatch.context() as patch:
        patch.setattr(paired, "to_paired", broken)
        assert project.build() == 1
    assert "the step is broken" in capfd.readouterr().err
    assert project.versions == project.left_over == []
    spec, _ = read(project.folder / "demo.yaml")
    assert engine.build(spec, Workspace(project.folder / ".rlhf")).ran == ["shape", "weigh", "publish"]


@pytest.mark.parametrize("as_polars", [False, True], ids=["OSError", "as polars tells it"])
@pytest.mark.parametrize("where", ["step", "publish"])
def test_a_full_disk_is_a_message_and_publishes_nothing(where, as_polars, project, monkeypatch, capfd):
    told = "parquet: File out of specification: underlying IO error: No space left on device (os error 28)"
    write = pl.DataFrame.write_parquet

    def full(frame, path, **options):
        if where == "step" or "data" in Path(path).parts:
            raise pl.exceptions.ComputeError(told) if as_polars else OSError(28, "No space left on device")
        write(frame, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        assert project.build() == 1
    said = capfd.readouterr().err
    assert "no space left on the disk" in said
    assert "Traceback" not in said
    assert project.versions == project.left_over == []
    assert not (project.folder / "snapshots" / "demo" / "refs").exists()
    assert project.build() == 0


def test_a_full_disk_is_recognised_as_polars_really_tells_it():
    from rlhf_data.terminal import message

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(Exception, match=r"28|space") as error:
        pl.DataFrame({"x": range(100_000)}).write_parquet("/dev/full")
    assert "no space left on the disk" in message(error.value)


EXPECTATIONS = {
    "too few rows": ("{rows: [1000, null]}", r"expect.rows: 72 rows, fewer than 1000"),
    "too many rows": ("{rows: [null, 3]}", r"expect.rows: 72 rows, more than 3"),
    "too many refused": ("{quarantine_rate: 0.01}", r"expect.quarantine_rate: 2 .*json.invalid 1, rating.out_of"),
}  # fmt: skip


@pytest.mark.parametrize(("expect", "message"), EXPECTATIONS.values(), ids=EXPECTATIONS)
def test_what_is_not_as_expected_is_not_published(expect, message, project):
    # 12 prompts of 4 answers with different ratings: 6 pairs each
    project.raw([*ratings(), "{broken", {"prompt": "question 0?", "completion": "too good", "rating": 11}])
    spec, _ = read(project.spec(SPEC.replace("publish:", f"expect: {expect}\npublish:")))
    with pytest.raises(snapshot.ExpectationError, match=message):
        engine.build(spec, Workspace(project.folder / ".rlhf"))
    assert project.versions == project.left_over == []


def test_a_refused_row_is_refused_once(project):
    rows = [{"prompt": "", "completion": "x", "rating": 1}, {"prompt": "q", "completion": "x", "rating": 11}]
    project.raw([*ratings(), *rows])
    # 2 of 50 records: 4 %
    project.spec(SPEC.replace("publish:", "expect: {quarantine_rate: 0.04}\npublish:"))
    assert project.build() == 0
    project.spec(SPEC.replace("publish:", "expect: {quarantine_rate: 0.039}\npublish:"))
    assert project.build() == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf_data import files
from rlhf_data.cli import run_command
whole_folder, step = files.whole_folder, sys.argv[1]

def deadly(path):
    # The first folder of the kind dies when it is about to be whole.
    made = whole_folder(path)
    class Deadly:
        def __enter__(self):
            return made.__enter__()
        def __exit__(self, *error):
            if step == path.parent.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return made.__exit__(*error)
    return Deadly()

files.whole_folder = deadly
run_command(["build", "demo.yaml"])
"""


@pytest.mark.parametrize("kind", ["steps", "demo"], ids=["in the first step", "while publishing"])
def test_a_killed_build_resumes_with_the_same_result_and_leaves_nothing(kind, project, monkeypatch):
    died = subprocess.run([sys.executable, "-c", KILLED, kind], cwd=project.folder, capture_output=True)
    assert died.returncode == -signal.SIGKILL
    assert project.left_over  # it died in the middle
    assert project.versions == []
    assert project.build() == 0
    assert project.left_over == []
    killed = project.snapshot
    shutil.copytree(project.folder / "raw", project.folder / "again" / "raw")
    monkeypatch.chdir(project.folder / "again")
    (project.folder / "again" / "demo.yaml").write_text(SPEC)
    assert project.build() == 0
    whole = snapshot.Snapshot(project.folder / "again" / "snapshots" / "demo")
    assert whole.manifest["content_hash"] == killed.manifest["content_hash"]
    assert data_bytes(whole.path) == data_bytes(killed.path)


def test_two_builds_at_once_both_succeed_with_one_snapshot(project):
    project.raw(ratings(200))
    both = [subprocess.Popen(COMMAND, cwd=project.folder, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(project.versions) == 1
    assert project.left_over == []
    assert project.build() == 0


def test_a_step_that_another_process_ran_in_the_meantime_is_taken_and_not_removed(project):
    spec, _ = read(project.folder / "demo.yaml")
    workspace = Workspace(project.folder / ".rlhf")
    stale = engine.plan(spec, workspace)
    engine.build(spec, workspace)
    inodes = {p.name: p.stat().st_ino for p in (workspace.root / "steps").iterdir()}
    for step in stale:
        assert not step.cached
        engine.run_step(step, stale, workspace)
    assert {p.name: p.stat().st_ino for p in (workspace.root / "steps").iterdir()} == inodes


def test_the_number_of_threads_changes_no_byte(project, tmp_path):
    project.raw(ratings(60))
    found = []
    for threads in ("1", "2"):
        folder = tmp_path / f"threads{threads}"
        shutil.copytree(project.folder / "raw", folder / "raw")
        (folder / "demo.yaml").write_text(SPEC)
        subprocess.run(
            COMMAND, cwd=folder, check=True, env={**os.environ, "POLARS_MAX_THREADS": threads}, capture_output=True
        )
        found.append(snapshot.Snapshot(folder / "snapshots" / "demo"))
    assert data_bytes(found[0].path) == data_bytes(found[1].path)
    assert found[0].manifest["content_hash"] == found[1].manifest["content_hash"]


@pytest.mark.parametrize("shape", ["to: paired, pairing: all", "to: paired, pairing: best_vs_random", "to: unpaired"])
def test_the_order_of_raw_rows_changes_nothing_but_the_record_numbers(shape, project):
    spec = SPEC.replace("to: paired, pairing: all", shape)
    spec = spec.replace("publish:", "weigh: {weight: {category: {x: 0.3}, normalize: mean_one}}\npublish:")
    found = []
    for rows in (ratings(), sorted(ratings(), key=lambda row: (row["rating"], row["completion"]))):
        project.raw(rows)
        project.spec(spec)
        assert project.build() == 0
        found.append(project.snapshot)
    first, second = (one.scan().drop("raw_ref").collect() for one in found)
    assert found[0].id != found[1].id
    assert first.equals(second)


def test_counts_of_a_cached_step_are_those_of_its_run(built):
    spec, _ = read(built.folder / "demo.yaml")
    seen = []
    built_again = engine.build(
        spec,
        Workspace(built.folder / ".rlhf"),
        on_step=lambda step, seconds, counts: seen.append((step.cached, counts)),
    )
    assert all(cached for cached, _ in seen)
    assert [count.as_dict() for count in built_again.counts] == built.snapshot.manifest["accounting"]
    assert json.dumps(built.snapshot.manifest["accounting"])


def test_training_asks_for_a_spec_that_trains_and_a_snapshot_that_is_current(built):
    spec, _ = read(built.folder / "demo.yaml")
    workspace = Workspace(built.folder / ".rlhf")
    with pytest.raises(ValueError, match="demo has no train section"):
        engine.train(spec, workspace)
    built.raw(ratings(3))
    with pytest.raises(ValueError, match=r"demo is not built \(read:a, collect, .*\): run `rlhf-data build` first"):
        engine.current_snapshot(spec, workspace)


def test_refs_latest_is_never_seen_half_written(built, monkeypatch):
    ref = built.folder / "snapshots" / "demo" / "refs" / "latest"
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((Path(target).name, ref.read_text()))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watched)
    snapshot.set_latest(built.snapshot.path)
    assert seen == [("latest", built.snapshot.id + "\n")]
    assert time.time() - ref.stat().st_mtime < 60
