"""Keep the completions that an expression is true of."""

from pathlib import Path

import polars as pl

from rlhf_data import tables
from rlhf_data.accounting import Count

# What a `where` can speak of.
COLUMNS: dict[str, pl.DataType] = {
    "prompt": pl.String(),  # the contents of all turns, joined by blank lines
    "turns": pl.UInt32(),  # how many messages the prompt has
    "completion": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "model": pl.String(),
}


def filter_completions(inputs: dict[str, Path], out: Path, *, where: str, step: str = "clean") -> list[Count]:
    """Keep the completions for which `where` is true, and the judgments whose completions are all kept.

    Args:
        inputs: one folder with prompts, completions and judgments.
        out: gets the same three tables.
        where: a condition in polars' SQL over `COLUMNS`; null counts as false.
        step: the name it is accounted under.

    Raises:
        ValueError: `where` cannot be computed of a row.
    """
    (folder,) = inputs.values()
    prompts = tables.read(folder / "prompts.parquet", "prompts")
    completions = tables.read(folder / "completions.parquet", "completions")
    judgments = tables.read(folder / "judgments.parquet", "judgments")
    turns = prompts.select(
        "prompt_id",
        prompt=pl.col("prompt").list.eval(pl.element().struct["content"]).list.join("\n\n"),
        turns=pl.col("prompt").list.len(),
    )
    subjects = completions.join(turns, on="prompt_id", maintain_order="left")
    try:
        true = subjects.select(pl.sql_expr(where).fill_null(False))
    except pl.exceptions.PolarsError as error:  # a cast of a value that cannot be one, say
        raise ValueError(f"{step}: {where}: {str(error).splitlines()[0]}") from None
    kept = completions.filter(true.to_series())
    alive = kept["completion_id"].implode()
    heard = judgments.filter(
        pl.col("completion_id").is_in(alive) & (pl.col("other_id").is_null() | pl.col("other_id").is_in(alive))
    )
    tables.write(prompts, out / "prompts.parquet", "prompts")
    tables.write(kept, out / "completions.parquet", "completions")
    tables.write(heard, out / "judgments.parquet", "judgments")
    return [
        _filtered(step, "completions", completions.height, kept.height, f"not ({where})"),
        _filtered(step, "judgments", judgments.height, heard.height, f"of a completion with not ({where})"),
    ]


def _filtered(step: str, unit: str, rows_in: int, out: int, reason: str) -> Count:
    return Count(step, unit, rows_in, out, filtered={reason: rows_in - out} if rows_in > out else {})
