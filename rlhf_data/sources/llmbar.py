"""LLMBar (Zeng et al. 2023, arXiv:2310.07641): pairs with one label that experts agreed on."""

from pathlib import Path

import polars as pl

from rlhf_data.sources.observations import Read, reasons

TABLES = {"raw": {"input": pl.String(), "output_1": pl.String(), "output_2": pl.String(), "label": pl.Int64()}}


def read(raw: pl.DataFrame, *, file: str) -> Read:
    """One comparison a record; the subset, which only the file's name tells, is the category.

    Args:
        raw: record; input, output_1, output_2 (String); label (Int64): 1 or 2, the better output.
        file: the file's name.

    Returns:
        rows: comparisons of output_1 with output_2;
        rejects: `verdict.unknown` for another label.
    """
    labelled = pl.col("label").is_null() | pl.col("label").is_in([1, 2])
    rows = raw.filter(labelled).select(
        "record",
        prompt="input",
        completion="output_1",
        other="output_2",
        kind=pl.lit("comparison"),
        value=2.0 - pl.col("label"),
        category=pl.lit(Path(file.removesuffix(".gz")).stem),
    )
    unknown = raw.filter(~labelled)
    return Read(rows, rejects=reasons(unknown, "verdict.unknown", pl.format("label {} is not 1 or 2", "label")))
