"""Several processes that score one request do each part once, and a dead one's part is done by another."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_data.scoring import score
from rlhf_data.scoring.workers import launch, place, taken
from tests import tiny_model

NAMES = [f"{i:02d}" for i in range(20)]
HOLDS = """
import sys, time
from pathlib import Path
from rlhf_data.scoring.workers import taken
name = next(taken(Path(sys.argv[1]), sys.argv[2:]))
print(name, flush=True)
time.sleep(60)
"""


def requests(path: Path, prompts: int) -> Path:
    prompt = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    of = [i // 2 for i in range(2 * prompts)]
    columns = {
        "completion_id": [f"{i}" for i in range(2 * prompts)],
        "prompt": pa.array([[{"role": "user", "content": f"What is {i}?"}] for i in of], prompt),
        "completion": [f"It is {i % 2} and {i}." for i in range(2 * prompts)],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_each_part_is_taken_once_by_however_many(tmp_path):
    with ThreadPoolExecutor(4) as pool:  # they share a process id, so none takes another for dead
        parts = list(pool.map(lambda _: list(taken(tmp_path, NAMES)), range(4)))
    assert sorted(name for part in parts for name in part) == NAMES


def test_a_second_run_over_the_same_claims_has_nothing_to_do(tmp_path):
    assert sorted(taken(tmp_path, NAMES)) == NAMES
    assert list(taken(tmp_path, NAMES)) == []


def test_the_part_of_a_killed_process_is_taken_by_another(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path), *NAMES], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        held = holder.stdout.readline().strip()
        ours = taken(tmp_path, NAMES)
        got = [next(ours) for _ in range(len(NAMES) - 1)]
        assert held not in got
        holder.kill()
        holder.wait()
    assert [*got, *ours][-1] == held


def test_a_silent_holder_on_another_machine_loses_its_claim_after_the_lease(tmp_path):
    claim = tmp_path / "a.claim"
    claim.write_text("another-machine 1")
    os.utime(claim, (time.time() - 5, time.time() - 5))
    assert list(taken(tmp_path, ["a"], lease=4)) == ["a"]


def test_a_held_claim_is_renewed_however_long_the_work_takes(tmp_path):
    ours = taken(tmp_path, ["a"], lease=0.2)
    assert next(ours) == "a"
    time.sleep(0.6)
    assert time.time() - (tmp_path / "a.claim").stat().st_mtime < 0.2
    assert list(ours) == []


def test_a_launched_process_knows_its_place(tmp_path):
    code = (
        "import sys; from rlhf_data.scoring.workers import place; "
        "here = place(); open(f'{sys.argv[1]}/{here.rank}', 'w').write(str(tuple(here)))"
    )
    assert launch([sys.executable, "-c", code, str(tmp_path)], 2) == [0, 0]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"(0, 2, 0)", "(1, 2, 1)"}
    assert place() == (0, 1, 0)


def test_two_processes_score_what_one_scores(tmp_path):
    reference = tiny_model.save(tmp_path / "model")
    asked = requests(tmp_path / "in.parquet", 60)
    alone = tmp_path / "alone.parquet"
    common = {"max_length": 96, "cache": tmp_path / "cache", "progress": False}
    score(asked, alone, store=tmp_path / "alone", model=reference, **common)
    out, store = tmp_path / "both.parquet", tmp_path / "both"
    command = [sys.executable, "-m", "rlhf_data.scoring", str(asked), str(out), "--processes", "2"]
    command += ["--store", str(store), "--model", reference["path"], "--cache", str(tmp_path / "cache")]
    ended = subprocess.run([*command, "--max-length", "96"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout.splitlines()[-1])
    assert (counts["distinct"], counts["reused"], counts["scored"]) == (120, 120, 0)  # the last look finds all done
    one, both = pq.read_table(alone).to_pylist(), pq.read_table(out).to_pylist()
    assert [row["completion_id"] for row in both] == [row["completion_id"] for row in one]
    assert [row["logps"] for row in both] == pytest.approx([row["logps"] for row in one], abs=1e-4)
    keys = [key for path in store.rglob("shard-*.parquet") for key in pq.read_table(path)["key"].to_pylist()]
    assert len(keys) == len(set(keys)) == 120  # nothing ran twice
