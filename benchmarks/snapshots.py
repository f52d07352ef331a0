"""What it takes to look into large snapshots: diff, query, explain and show, each as a process of its own.

Two versions of one snapshot are built from a generated raw file by the commands that build any other: the second time
without some prompts, with other ratings of others, and with another weight for a category.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

PAIRS = 6  # of the four answers of a prompt
SPEC = """version: 1
name: looked_at
sources:
  made: {{path: raw.parquet}}
rate: {{by: rating, scale: [0, 1]}}
split: {{test: 0.05}}
shape: {{to: paired, pairing: all}}
weigh: {{weight: {{category: {{c1: {weight}}}}}}}
publish: {{to: snapshots/looked_at}}
"""


def build(folder: Path, rows: int) -> None:
    """Two versions of a snapshot of about so many pairs in `folder`, unless they are there.

    Args:
        folder: the project; raw file, spec, workspace and snapshots go there.
        rows: pairs; a sixth as many prompts are made, of four answers each.
    """
    if len(list(folder.glob("snapshots/looked_at/*/_SUCCESS"))) >= 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    random, n = np.random.default_rng(0), rows // PAIRS
    prompt = np.repeat(np.arange(n), 4)
    raw = pl.DataFrame({"n": prompt, "rating": random.random(4 * n)}).select(
        "rating",
        prompt=pl.format("Question {} of those that were asked, with what else there is to say of it.", "n"),
        completion=pl.format("Answer {}. ", pl.int_range(pl.len())) + "It goes on like this for quite a while. " * 8,
        category=pl.format("c{}", pl.col("n") % 7),
        fate=pl.col("n") % 100,
    )
    raw = raw.sort(pl.col("fate") == 0, maintain_order=True)  # what goes is at the end: no other record is renumbered
    for weight, version in (
        (1.0, raw),
        (2.0, raw.filter(pl.col("fate") != 0).with_columns(rating=_other_ratings())),
    ):
        version.drop("fate").write_parquet(folder / "raw.parquet")
        (folder / "spec.yaml").write_text(SPEC.format(weight=weight))
        _command(folder, "build", "spec.yaml")


def _other_ratings() -> pl.Expr:
    return pl.when(pl.col("fate") == 1).then(1.0 - pl.col("rating")).otherwise("rating")


def measure(folder: Path, rounds: int = 3) -> dict[str, dict[str, Any]]:
    """Seconds on the clock and of the processor (every round, and their medians) and peak MB of each command."""
    (asked,) = json.loads(_command(folder, "query", "SELECT max(pair_id) AS pair FROM rows", "--json")[0])
    commands = {
        "diff": ["diff", "looked_at@previous"],
        "diff --out": ["diff", "looked_at@previous", "--out", "changes.parquet"],
        "query": ["query", "SELECT category, count(*), avg(margin) FROM rows GROUP BY 1"],
        "explain": ["explain", asked["pair"][:12]],
        "show": ["show", "looked_at"],
    }
    found: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, arguments in commands.items():
            _, seconds, cpu, megabytes = _command(folder, *arguments)
            one = found.setdefault(name, {"seconds": [], "cpu": [], "peak_mb": 0.0})
            one["seconds"].append(round(seconds, 3))
            one["cpu"].append(round(cpu, 3))
            one["peak_mb"] = max(one["peak_mb"], round(megabytes, 1))
    medians = {"median": "seconds", "median_cpu": "cpu"}
    return {
        name: one | {median: statistics.median(one[of]) for median, of in medians.items()}
        for name, one in found.items()
    }


def _command(folder: Path, *arguments: str) -> tuple[str, float, float, float]:
    """What a command prints, its seconds on the clock and of the processor, and the most memory it held (MB)."""
    started = time.perf_counter()
    code = "import sys; from rlhf_data.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        out = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise RuntimeError(f"rlhf-data {' '.join(arguments)} exited with {running.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return out, time.perf_counter() - started, cpu, usage.ru_maxrss / (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Build the two versions, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("snapshots-benchmark"), help="Where the snapshots are built."
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="Pairs of a snapshot.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20,000 pairs, one round.")
    asked = parser.parse_args()
    rows, rounds = (20_000, 1) if asked.quick else (asked.rows, asked.rounds)
    folder = asked.folder.resolve() / str(rows)
    building = multiprocessing.get_context("spawn").Process(target=build, args=(folder, rows))
    building.start()  # a process of its own: a command's peak of memory counts from what this one holds
    building.join()
    found = measure(folder, rounds)
    for name, one in found.items():
        clock = f"{one['median']:>7.2f} s ({one['median_cpu']:.2f} s of the processor)"
        print(f"{name:<12} {clock} {one['peak_mb']:>8.0f} MB")
    print(json.dumps({"rows": rows, "commands": found}))


if __name__ == "__main__":
    main()
