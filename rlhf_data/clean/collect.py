"""Bring the sources of a spec together: each prompt and each completion once, every judgment kept."""

from pathlib import Path

import polars as pl

from rlhf_data import tables
from rlhf_data.accounting import Count


def collect(inputs: dict[str, Path], out: Path) -> list[Count]:
    """Concatenate what the sources gave; where two hold the same text, the first of the spec names it.

    Args:
        inputs: folders with prompts, completions and judgments, in the spec's order of sources.
        out: gets the same three tables.
    """
    held = {
        name: pl.concat([tables.read(folder / f"{name}.parquet", name) for folder in inputs.values()])
        for name in ("prompts", "completions", "judgments")
    }
    prompts = held["prompts"].unique("prompt_id", keep="first", maintain_order=True)
    completions = held["completions"].unique("completion_id", keep="first", maintain_order=True)
    tables.write(prompts, out / "prompts.parquet", "prompts")
    tables.write(completions, out / "completions.parquet", "completions")
    tables.write(held["judgments"], out / "judgments.parquet", "judgments")
    return [
        _merged("prompts", held["prompts"].height, prompts.height),
        _merged("completions", held["completions"].height, completions.height),
    ]


def _merged(unit: str, rows_in: int, out: int) -> Count:
    return Count("collect", unit, rows_in, out, merged={"in several sources": rows_in - out} if rows_in > out else {})
