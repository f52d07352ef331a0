"""Large snapshots in the real format, fast: for the benchmarks of `diff`, `query` and `explain`.

The rows are made by columns and published by the code that publishes every snapshot; only the steps before it are left
out.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

from rlhf_data import ids, tables
from rlhf_data.accounting import Count
from rlhf_data.snapshot import publish

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda")


def rows_of(rows: int, *, seed: int = 0, answers: int = 4) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """A paired table without its texts, and the prompts and completions that it names.

    Args:
        rows: pairs; each prompt has two, of `answers` answers.
        seed: of texts and numbers.
        answers: completions a prompt.
    """
    random = np.random.default_rng(seed)
    n = -(-rows // 2)
    asked = [f"question {k} about {WORDS[k % len(WORDS)]} " + "lorem ipsum " * 10 for k in range(n)]
    prompts = pl.DataFrame(
        {"prompt": [[{"role": "user", "content": text}] for text in asked]}, {"prompt": ids.MESSAGES}
    )
    prompts = prompts.with_columns(ids.prompt_ids(prompts["prompt"]), ids.split_keys(prompts["prompt"]))
    owner = np.repeat(np.arange(n), answers)
    completions = prompts.select("prompt_id")[owner].with_columns(
        completion=pl.Series([f"answer {k} " + "dolor sit amet " * 20 for k in range(n * answers)])
    )
    completions = completions.with_columns(
        ids.completion_ids(completions["prompt_id"], completions["completion"]),
        reward=pl.Series(random.random(n * answers)),
        source=pl.lit("made"),
        category=pl.Series(np.array(WORDS)[owner % 7]),
        model=pl.lit(None, dtype=pl.String),
    )
    order = np.argsort(-completions["reward"].to_numpy().reshape(n, answers), axis=1) + np.arange(n)[:, None] * answers
    best = np.concatenate([order[:, 0], order[:, 1]])[:rows]
    worst = np.concatenate([order[:, -1], order[:, -2]])[:rows]
    sides = {"chosen": completions[best], "rejected": completions[worst]}
    pairs = pl.DataFrame(
        {
            "prompt_id": sides["chosen"]["prompt_id"],
            "chosen_id": sides["chosen"]["completion_id"],
            "rejected_id": sides["rejected"]["completion_id"],
            "chosen_reward": sides["chosen"]["reward"],
            "rejected_reward": sides["rejected"]["reward"],
            "margin": sides["chosen"]["reward"] - sides["rejected"]["reward"],
            "category": sides["chosen"]["category"],
            "raw_ref": [[f"made.jsonl#{a}", f"made.jsonl#{b}"] for a, b in zip(best, worst, strict=True)],
        }
    )
    place = ids.keyed_fraction(pairs["prompt_id"], "split")
    pairs = pairs.with_columns(
        ids.pair_ids(pairs["chosen_id"], pairs["rejected_id"], "pair_id"),
        preference=pl.lit(1.0),
        votes=pl.lit(2, dtype=pl.Int64),
        source=pl.lit("made"),
        split=pl.when(place < 0.05).then(pl.lit("test")).otherwise(pl.lit("train")),
        weight=pl.lit(1.0),
    )
    return pairs, prompts, completions.drop("reward")


def changed(pairs: pl.DataFrame) -> pl.DataFrame:
    """The same pairs after changes: of a hundred each, one is gone, one turned round, one weighed, one rated anew."""
    place = ids.keyed_fraction(pairs["pair_id"], "change")
    turned, weighed, rated = (place.is_between(low, low + 0.01, closed="left") for low in (0.01, 0.02, 0.03))
    some = pairs.with_columns(
        chosen_id=pl.when(turned).then("rejected_id").otherwise("chosen_id"),
        rejected_id=pl.when(turned).then("chosen_id").otherwise("rejected_id"),
        weight=pl.when(weighed).then(2.0).otherwise("weight"),
        chosen_reward=pl.when(rated).then(pl.col("chosen_reward") + 1).otherwise("chosen_reward"),
        margin=pl.when(rated).then(pl.col("margin") + 1).otherwise("margin"),
    )
    some = some.with_columns(ids.pair_ids(some["chosen_id"], some["rejected_id"], "pair_id"))
    return some.filter(place >= 0.01)


def publish_rows(
    folder: Path, name: str, pairs: pl.DataFrame, prompts: pl.DataFrame, completions: pl.DataFrame
) -> Path:
    """Publish pairs as a snapshot under folder/name; the folder of its versions."""
    work, out = folder / "work", folder / "out"
    for made in (work, out):
        made.mkdir(parents=True, exist_ok=True)
    tables.write(pairs.sort("prompt_id", "pair_id"), work / "rows.parquet", "paired_rows")
    tables.write(prompts, work / "prompts.parquet", "prompts")
    tables.write(completions, work / "completions.parquet", "completions")
    publish(
        {"rows": work, "text": work},
        out,
        to=str(folder / name),
        name=name,
        about="Made for a benchmark.",
        table="paired",
        spec_lock=f"version: 1\nname: {name}\n",
        spec_hash=name,
        sources={"made": {"adapter": "columns", "license": None, "hf": None, "files": []}},
        counts=[Count("shape", "candidate pairs", pairs.height, pairs.height)],
        expect={},
    )
    return folder / name


def main() -> None:
    """Two snapshots, one with changes, of so many rows each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    started = time.perf_counter()
    pairs, prompts, completions = rows_of(asked.rows)
    for name, rows in (("before", pairs), ("after", changed(pairs))):
        print(publish_rows(asked.folder, name, rows, prompts, completions), f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
