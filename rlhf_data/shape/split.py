"""Which side of the split a prompt stands on: by conversation root, by hash threshold."""

from pathlib import Path

import polars as pl

from rlhf_data import ids, tables, texts


def assign(split_key: pl.Series, *, test: float, validation: float) -> pl.Series:
    """The split of each conversation root.

    A root's place depends on nothing but its own text: rows that arrive move no other row, raising `test` moves rows
    into the test split only, and every spec puts a prompt on the same side.

    Args:
        split_key: normalised roots, as `ids.split_keys` gives them.
        test: share of roots that are test, from 0 to 1.
        validation: share of roots that are validation.
    """
    place = ids.keyed_fraction(split_key, "split").alias("place")
    return place.to_frame().select(
        split=pl.when(pl.col("place") < test)
        .then(pl.lit("test"))
        .when(pl.col("place") >= 1.0 - validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )["split"]


def split(inputs: dict[str, Path], out: Path, *, test: float = 0.0, validation: float = 0.0) -> list:
    """Prompts → splits.parquet.

    Args:
        inputs: "text", a text folder; "clusters" where near-duplicate roots share a key.
        out: gets the table.
        test: share of roots, or of clusters, that are test.
        validation: share of them that are validation.
    """
    clusters = inputs.get("clusters")
    if clusters is None:
        prompts = texts.read(inputs["text"], "prompts", ["prompt_row", "split_key"])
    else:
        prompts = tables.read(clusters / "clusters.parquet", "clusters")
    splits = prompts.select("prompt_row", split=assign(prompts["split_key"], test=test, validation=validation))
    tables.write(splits, out / "splits.parquet", "splits")
    return []
