"""Keep the completions that an expression is true of."""

from pathlib import Path

import polars as pl

from rlhf_data import texts
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
    completions, judgments = texts.read(folder, "completions"), texts.read(folder, "judgments")
    kept = completions.filter(pl.col("completion_row").is_in(_true(folder, where, step).implode()))
    heard = judgments_of(judgments, kept["completion_row"])
    texts.write(
        out,
        texts.chunks_of(folder),
        prompts=texts.read(folder, "prompts"),
        completions=kept,
        judgments=heard,
    )
    return [
        _filtered(step, "completions", completions.height, kept.height, f"not ({where})"),
        _filtered(step, "judgments", judgments.height, heard.height, f"of a completion with not ({where})"),
    ]


def judgments_of(judgments: pl.DataFrame, kept: pl.Series) -> pl.DataFrame:
    """The judgments whose completions are all among `kept`."""
    alive = kept.implode()
    other = pl.col("other_row")
    return judgments.filter(pl.col("completion_row").is_in(alive) & (other.is_null() | other.is_in(alive)))


def _true(folder: Path, where: str, step: str) -> pl.Series:
    """The rows of the completions for which the condition is true."""
    rows = [pl.Series("completion_row", [], dtype=pl.UInt32)]
    for batch in texts.completions_by_chunk(folder):
        subjects = batch.select(
            "completion",
            prompt=pl.col("prompt").list.eval(pl.element().struct["content"]).list.join("\n\n"),
            turns=pl.col("prompt").list.len(),
            **{name: pl.col(name).cast(pl.String) for name in ("source", "category", "model")},
        )
        try:
            true = subjects.select(pl.sql_expr(where).fill_null(False))
        except pl.exceptions.PolarsError as error:  # a cast of a value that cannot be one, say
            raise ValueError(f"{step}: {where}: {str(error).splitlines()[0]}") from None
        rows.append(batch["completion_row"].filter(true.to_series()))
    return pl.concat(rows)


def _filtered(step: str, unit: str, rows_in: int, out: int, reason: str) -> Count:
    return Count(step, unit, rows_in, out, filtered={reason: rows_in - out} if rows_in > out else {})
