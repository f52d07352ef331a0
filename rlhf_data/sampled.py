"""The step `read` of a source that a policy writes: prompts of a snapshot, a generator that is handed in, samples."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables
from rlhf_data.accounting import Count
from rlhf_data.sources.ingest import ingest

# (prompts.parquet) → the Parquet file of samples, in a folder of its own. Prompts are prompt_id, prompt, category;
# samples are these, sample (from 0), completion, n_tokens, finished.
Generator = Callable[[Path], Path]


def read_samples(
    out: Path,
    *,
    chunks: Path,
    source: str,
    generator: Generator,
    files: list[str],
    table: str,
    rows: int | None,
    skip: int,
    seed: int,
    unfinished: str,
    policy: str,
    version: str = "",
    category: str | None = None,
    limit: int | None = None,
) -> list[Count]:
    """Have a policy answer the prompts of a snapshot, and read its answers as observations without a judgment.

    Args:
        out: a folder, see `ingest`.
        chunks: the folder of all chunks.
        source: the source's name in the spec.
        generator: writes the answers.
        files: the snapshot's Parquet files of the split asked for.
        table: "paired" or "unpaired", what the snapshot is.
        rows: see `draw`.
        skip: see `draw`.
        seed: see `draw`.
        unfinished: see the adapter `written`.
        policy: who writes, in a word.
        version: of the code that reads.
        category: of prompts that have none.
        limit: answer only the first so many prompts.

    Returns:
        Counts of samples and of observations.
    """
    written = ask(out, generator, files=files, table=table, rows=rows, skip=skip, seed=seed, limit=limit)
    (out / "samples.json").write_text(json.dumps({"samples": written.parent.name}))  # what `gc` must leave
    options = {"model": policy, "unfinished": unfinished}
    reading: dict[str, Any] = {"adapter": "written", "options": options, "version": version, "category": category}
    return ingest(out, chunks=chunks, source=source, files={"raw": [str(written)]}, **reading)


def ask(
    folder: Path,
    generator: Generator,
    *,
    files: list[str],
    table: str,
    rows: int | None,
    skip: int,
    seed: int,
    limit: int | None,
) -> Path:
    """What `generator` gives for the prompts that `read_samples` draws with these arguments.

    For the time being their file is in `folder`.
    """
    drawn = draw(prompts_of(files, table), rows=rows, skip=skip, seed=seed)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as own:
        asked = Path(own) / "prompts.parquet"
        (drawn if limit is None else drawn.head(limit)).write_parquet(asked)
        return generator(asked)


def prompts_of(files: list[str], table: str) -> pl.DataFrame:
    """The prompts of a snapshot's files, each once, by id: prompt_id, prompt, category (the first that is said)."""
    rows = tables.scan([Path(file) for file in files], table)
    category = pl.col("category").drop_nulls().first()
    return rows.group_by("prompt_id").agg(pl.col("prompt").first(), category).sort("prompt_id").collect()


def draw(prompts: pl.DataFrame, *, rows: int | None, skip: int, seed: int) -> pl.DataFrame:
    """`rows` of the prompts in an order by keyed hash, the first `skip` passed over; all of them where it is None.

    The order begins again at its end, so draws that skip what others took use up all prompts before any comes again.

    >>> three = pl.DataFrame({"prompt_id": [f"{k:032x}" for k in range(3)]})
    >>> draw(three, rows=2, skip=2, seed=0).height, draw(three, rows=9, skip=2, seed=0).height
    (2, 3)
    """
    if rows is None or not prompts.height:
        return prompts
    ranked = prompts.sort(ids.keyed_hash(prompts["prompt_id"], "prompts", seed), "prompt_id")
    places = [(skip + k) % ranked.height for k in range(min(rows, ranked.height))]
    return ranked[places]
