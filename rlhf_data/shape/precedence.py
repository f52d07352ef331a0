"""Which source speaks first where two hold the same row."""

import polars as pl


def by_precedence(frame: pl.DataFrame, sources: list[str] | None) -> pl.DataFrame:
    """`frame`, the rows of earlier sources first; within a source the order stays.

    Args:
        frame: rows with `source`.
        sources: names in the spec's order; None leaves the order as it is.
    """
    if sources is None or len(sources) < 2:
        return frame
    place = (
        pl.col("source")
        .cast(pl.String)
        .replace_strict({name: k for k, name in enumerate(sources)}, return_dtype=pl.Int32)
    )
    return frame.sort(place, maintain_order=True)
