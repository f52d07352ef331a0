"""Weights of a million rows by ten rules: `python benchmarks/weights.py [--quick]`.

A scored paired snapshot is made up (texts of some 200 characters, log-probs of a reference and of a policy near it).
Each round runs, in turn and as processes of their own: `rlhf-data weights` over all rows and ten rules; the same
weights from `datasets.map`, where torch differentiates the losses as TRL 1.16 writes them in
DPOTrainer._compute_loss (sigmoid, ipo, hinge) and in SimPO's, batches of 1,000, over a part of the rows; and a loop in
Python over rows with `math`, the same four rules over a part of the rows. The peers' weights must equal ours. Ends
with one line of JSON: every figure of every round.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[1]
RULES = "dpo,cdpo:label_smoothing=0.2,ipo,hinge,simpo,apo_zero,nca,rdpo,rpo,beta_dpo"
SHARED = ["dpo", "ipo", "hinge", "simpo"]
MAP = """
import sys, time, datasets, pyarrow as pa, torch, torch.nn.functional as F
datasets.disable_progress_bars()
started = time.perf_counter()
# As Arrow: the torch and numpy formats would make float32 of the columns.
rows = datasets.Dataset.from_parquet(sys.argv[1], keep_in_memory=True).with_format("arrow")
def weigh(batch):
    batch_ids = batch["pair_id"]
    batch = {name: torch.tensor(batch[name].to_numpy()) for name in rows.column_names if name != "pair_id"}
    c = batch["policy_chosen"].requires_grad_(); r = batch["policy_rejected"].requires_grad_()
    delta = (c - batch["ref_chosen_logps"]) - (r - batch["ref_rejected_logps"])
    n, m = batch["chosen_n_tokens"], batch["rejected_n_tokens"]
    losses = {
        "dpo": -F.logsigmoid(0.1 * delta),
        "ipo": (delta - 1 / (2 * 0.1)) ** 2,
        "hinge": torch.relu(1 - 0.1 * delta),
        "simpo": -F.logsigmoid(2.0 * (c / n - r / m) - 1.0),
    }
    out = {"pair_id": batch_ids}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss.sum(), (c, r), retain_graph=True)
        out[name + ".w_chosen"], out[name + ".w_rejected"] = -grads[0].numpy(), grads[1].numpy()
    return pa.table(out)
others = [name for name in rows.column_names if name != "pair_id"]
rows.map(weigh, batched=True, batch_size=1000, remove_columns=others).to_parquet(sys.argv[2])
print(time.perf_counter() - started)
"""
LOOP = """
import sys, time, math, polars as pl
started = time.perf_counter()
out = []
sigmoid = lambda x: 1 / (1 + math.exp(-x))
for row in pl.read_parquet(sys.argv[1]).iter_rows(named=True):
    c, r = row["policy_chosen"], row["policy_rejected"]
    n, m = row["chosen_n_tokens"], row["rejected_n_tokens"]
    delta = c - row["ref_chosen_logps"] - (r - row["ref_rejected_logps"])
    dpo, ipo, hinge = 0.1 * sigmoid(-0.1 * delta), 2 * (5 - delta), 0.1 * (0.1 * delta < 1)
    simpo = 2.0 * sigmoid(1.0 - 2.0 * (c / n - r / m))
    out.append((row["pair_id"], dpo, dpo, ipo, ipo, hinge, hinge, simpo / n, simpo / m))
names = ["pair_id", *(f"{rule}.{w}" for rule in ("dpo", "ipo", "hinge", "simpo") for w in ("w_chosen", "w_rejected"))]
pl.DataFrame(out, schema=names, orient="row").write_parquet(sys.argv[2])
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200,000 rows and one round: within a minute")
    quick = parser.parse_args().quick
    rows, part, rounds = (200_000, 20_000, 1) if quick else (1_000_000, 100_000, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, rows, part)
        figures = measure(folder, rows, part, rounds)
        exact = compare(folder)
    print(f"{'':<42}{'rows':>10}{'rules':>7}{'median s':>10}{'CPU s':>8}{'µs a row and rule':>19}{'× ours':>8}")
    ours = each(figures["rlhf-data weights, ten rules"])
    for label, one in figures.items():
        seconds, cpu = statistics.median(one["seconds"]), statistics.median(one["cpu"])
        print(
            f"{label:<42}{one['rows']:>10,}{one['rules']:>7}{seconds:>10.2f}{cpu:>8.2f}"
            f"{each(one) * 1e6:>19.3f}{each(one) / ours:>8.1f}"
        )
    print(f"largest difference of a shared weight, relative to the peer's: {exact}")
    print(json.dumps({"rows": rows, "rounds": rounds, "figures": figures, "largest_difference": exact}))


def each(one: dict) -> float:
    """Median seconds of a process over a row and a rule."""
    return statistics.median(one["seconds"]) / (one["rows"] * one["rules"])


def make(folder: Path, rows: int, part: int) -> None:
    """A snapshot of pairs, and the peers' part of its columns with the policy's log-probs in place."""
    sys.path.insert(0, str(ROOT))
    from rlhf_data import tables

    random = np.random.default_rng(0)
    n, m = (random.lognormal(4.5, 0.7, rows).astype(np.int64) + 1 for _ in range(2))
    chosen, rejected = -n * random.lognormal(0.1, 0.3, rows), -m * random.lognormal(0.1, 0.3, rows)
    ids = [[f"{side:02}{k:030x}" for k in range(rows)] for side in range(4)]
    text = [f"{'what a model answers to a question ' * 6}{k}" for k in range(1000)]
    table = pl.DataFrame({
        "pair_id": ids[0], "prompt_id": ids[1], "chosen_id": ids[2], "rejected_id": ids[3],
        "prompt": [[{"role": "user", "content": text[k % 1000]}] for k in range(rows)],
        "chosen": [text[k % 1000] for k in range(rows)], "rejected": [text[(k + 1) % 1000] for k in range(rows)],
        "preference": np.ones(rows), "weight": np.ones(rows), "source": "made", "category": None, "split": "train",
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected, "chosen_n_tokens": n, "rejected_n_tokens": m,
        "truncated": False, "raw_ref": [["made#0"]] * rows,
    })  # fmt: skip
    snapshot = folder / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    file = snapshot / "data" / "train-00000-of-00001.parquet"
    tables.write(table, file, "paired", published=True)
    entry = {"path": "data/train-00000-of-00001.parquet", "rows": rows, "bytes": file.stat().st_size}
    (snapshot / "manifest.json").write_text(json.dumps({"table": "paired", "rows": {"train": rows}, "files": [entry]}))
    (snapshot / "_SUCCESS").touch()
    moved = [np.minimum(logps + random.normal(0, 5, rows), 0.0) for logps in (chosen, rejected)]
    pl.DataFrame({"completion_id": [*ids[2], *ids[3]], "logps": np.concatenate(moved)}).write_parquet(
        folder / "policy.parquet"
    )
    narrow = ["pair_id", "ref_chosen_logps", "ref_rejected_logps", "chosen_n_tokens", "rejected_n_tokens"]
    peers = table.select(narrow).with_columns(policy_chosen=moved[0], policy_rejected=moved[1]).head(part)
    peers.write_parquet(folder / "peers.parquet")


def measure(folder: Path, rows: int, part: int, rounds: int) -> dict[str, dict]:
    """Seconds of whole processes, each round in turn; of the peers also without their imports."""
    cli = [sys.executable, "-m", "rlhf_data.cli", "weights", str(folder / "snapshot"), "--rules", RULES]
    out = str(folder / "ours.parquet")
    near = ["--policy", str(folder / "policy.parquet")]
    peers = [str(folder / "peers.parquet")]
    commands = {
        "rlhf-data weights, ten rules": (rows, 10, [*cli, "--out", str(folder / "reference.parquet")]),
        "the same with --policy FILE": (rows, 10, [*cli, "--out", out, *near]),
        "datasets.map, TRL's losses by autograd": (
            part, 4, [sys.executable, "-c", MAP, *peers, str(folder / "map.parquet")]),
        "a Python loop over rows": (part, 4, [sys.executable, "-c", LOOP, *peers, str(folder / "loop.parquet")]),
    }  # fmt: skip
    figures = {
        label: {"rows": n, "rules": k, "seconds": [], "cpu": [], "inside": []} for label, (n, k, _) in commands.items()
    }
    cache = os.environ | {"HF_DATASETS_CACHE": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    for _ in range(rounds):
        for label, (_, _, command) in commands.items():
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            ran = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True, env=cache)
            figures[label]["seconds"].append(round(time.perf_counter() - started, 3))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures[label]["cpu"].append(round(spent, 3))
            if command[1] == "-c":  # the peers say what they took after their imports
                figures[label]["inside"].append(round(float(ran.stdout.split()[-1]), 3))
    return figures


def compare(folder: Path) -> dict[str, float]:
    """The largest difference of a shared rule's weight between each peer and us, relative to the larger of the two."""
    ours = pl.read_parquet(folder / "ours.parquet")
    names = [f"{rule}.{side}" for rule in SHARED for side in ("w_chosen", "w_rejected")]
    found = {}
    for peer in ("map", "loop"):
        theirs = pl.read_parquet(folder / f"{peer}.parquet")
        same = theirs.join(ours, on="pair_id", suffix=" ours", maintain_order="left")
        apart = [
            (same[n] - same[f"{n} ours"]).abs()
            / pl.DataFrame([same[n].abs(), same[f"{n} ours"].abs()]).max_horizontal()
            for n in names
        ]
        found[peer] = max(float(one.fill_nan(0).max()) for one in apart)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    main()
