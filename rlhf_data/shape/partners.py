"""Mismatched partners: for each row, a completion of another prompt on the same side of the split."""

import polars as pl

from rlhf_data import ids


def mismatched(rows: pl.DataFrame, seed: int) -> pl.Series:
    """The completion_row whose text is put under each row's prompt; null where the split has only one prompt.

    Rows of a split stand in a circle, ordered by keyed hash; a row's partner is the next one with another prompt. A row
    that arrives changes the partner of its neighbours only.

    Args:
        rows: prompt_row, completion_row, completion_id, split.
        seed: of the keyed hash.
    """
    circle = (
        rows.select("prompt_row", "completion_row", "split")
        .with_columns(_place=ids.keyed_hash(rows["completion_id"], "mismatched", seed))
        .sort("split", "_place", "completion_row")
        .with_columns(_run=pl.col("prompt_row").rle_id().over("split"))
    )
    starts = circle.group_by("split", "_run", maintain_order=True).first()
    runs = pl.len().over("split")
    # The next run has another prompt, except where the circle closes between two runs of one prompt: then the second.
    next_run = starts.with_columns(
        _next=pl.col("completion_row").shift(-1).over("split"),
        _first=pl.col("completion_row").first().over("split"),
        _first_prompt=pl.col("prompt_row").first().over("split"),
        _second=pl.col("completion_row").shift(-1).first().over("split"),
        _runs=runs,
    ).select(
        "split",
        "_run",
        mismatched_row=pl.when(pl.col("_next").is_not_null())
        .then("_next")
        .when(pl.col("_first_prompt") != pl.col("prompt_row"))
        .then("_first")
        .when(pl.col("_runs") > 1)
        .then("_second"),
    )
    partner = circle.join(next_run, on=["split", "_run"]).select("completion_row", "mismatched_row")
    return (
        rows.select("completion_row").join(partner, on="completion_row", how="left", maintain_order="left").to_series(1)
    )
