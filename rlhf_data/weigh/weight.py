"""The step `weigh`: source × category × row × class factors end in one `weight`, which multiplies the row's loss."""

from pathlib import Path

import polars as pl

from rlhf_data import tables
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals


def weigh(
    inputs: dict[str, Path],
    out: Path,
    *,
    table: str,
    source: dict[str, float] | None = None,
    category: dict[str, float] | None = None,
    label: dict[bool, float] | None = None,
    row: str | None = None,
    clip: float | None = None,
    normalize: str | None = None,
) -> list[Count]:
    """rows.parquet → rows.parquet with `weight` = the product of the factors given.

    Args:
        inputs: "shape" (rows), "text" and "rate", which they are of.
        out: gets the same rows; those whose weight is not finite and at least 0 are refused as `weight.invalid`.
        table: "paired" or "unpaired".
        source: factor by source; a source that is not named has factor 1.
        category: factor by category, likewise.
        label: factor by label (unpaired only).
        row: an expression in polars' SQL over the table's narrow columns, such as "margin".
        clip: the largest weight.
        normalize: "mean_one" divides by the mean over the train split, after clipping.

    Raises:
        ValueError: `row` cannot be computed of a row, or there is no train weight to normalise.
    """
    name, pairs_from = f"{table}_rows", inputs["rate"] if table == "paired" else None
    rows = tables.read(inputs["shape"] / "rows.parquet", name)
    factor = _factor("source", source) * _factor("category", category) * _factor("label", label)
    if row is not None:
        factor = factor * pl.sql_expr(row).cast(pl.Float64)
    try:
        weighed = rows.with_columns(weight=factor)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"weigh.weight.row: {row}: {str(error).splitlines()[0]}") from None
    valid = (pl.col("weight").is_finite() & (pl.col("weight") >= 0.0)).fill_null(False)
    refused = Refusal("weight.invalid", weighed.filter(~valid), "a weight must be finite and at least 0")
    kept = weighed.filter(valid)
    if clip is not None:
        kept = kept.with_columns(pl.col("weight").clip(upper_bound=clip))
    if normalize == "mean_one":
        kept = kept.with_columns(pl.col("weight") / _train_mean(kept))
    tables.write(kept, out / "rows.parquet", name)
    tables.write(refusals([refused], "weigh", inputs["text"], pairs_from), out / "quarantine.parquet", "quarantine")
    lost = refused.rows.height
    return [Count("weigh", "rows", rows.height, kept.height, quarantined={"weight.invalid": lost} if lost else {})]


def _factor(column: str, factors: dict | None) -> pl.Expr:
    if not factors:
        return pl.lit(1.0)
    value = pl.col(column).cast(pl.String) if column != "label" else pl.col(column)
    return value.replace_strict(factors, default=1.0, return_dtype=pl.Float64)


def _train_mean(rows: pl.DataFrame) -> float:
    mean = rows.filter(pl.col("split") == "train")["weight"].sort().mean()
    if not isinstance(mean, float) or mean == 0.0:
        raise ValueError("weigh.weight.normalize: no train row has a weight over 0, so their mean cannot be made one")
    return mean
