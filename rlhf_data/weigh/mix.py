"""What is in the mix: parts of sources, counts and shares; drawn by keyed hash, of the train split only."""

from collections.abc import Mapping

import polars as pl

_UNIT = float(1 << 64)


def mix(
    rows: pl.DataFrame,
    lots: pl.Series,
    sizes: pl.Series,
    *,
    keep: Mapping[str, float] | None = None,
    most: Mapping[str, int] | None = None,
    share: Mapping[str, float] | None = None,
    temperature: float | None = None,
) -> tuple[pl.Series, dict[str, int]]:
    """Which rows are in the mix; held-out rows always are.

    Args:
        rows: source, split.
        lots: (n,) UInt64, a keyed hash a row: rows with small ones stay.
        sizes: (n,) what a share is counted in: 1 a row, or its tokens.
        keep: the part of a source's rows that stays, from 0 to 1.
        most: at most so many rows of a source.
        share: the part of the mix that each source is, of all sources that have rows; the mix is as large as it can be
            without a row twice.
        temperature: shares as size^(1/temperature): 1 leaves the sources as they are, larger ones even them out.

    Returns:
        (n,) Boolean, and how many rows are left out by each of the four, by reason.

    Raises:
        ValueError: a share for a source without rows, or a source with rows and no share.
    """
    frame = pl.DataFrame(
        {
            "source": rows["source"].cast(pl.String),
            "train": rows["split"].cast(pl.String) == "train",
            "lot": lots,
            "size": sizes.cast(pl.Float64),
        }
    ).with_row_index("at")
    held = frame.filter(pl.col("train"))
    left_out: dict[str, int] = {}
    if keep:
        part = pl.col("source").replace_strict(keep, default=1.0, return_dtype=pl.Float64)
        held = _only(held, held.filter(pl.col("lot").cast(pl.Float64) / _UNIT < part), "weigh.keep", left_out)
    if most:
        limit = pl.col("source").replace_strict(most, default=None, return_dtype=pl.Int64)
        place = pl.struct("lot", "at").rank("ordinal").over("source")
        held = _only(held, held.filter((place <= limit).fill_null(True)), "weigh.rows", left_out)
    if share or (temperature and held.height):
        amounts = dict(held.group_by("source").agg(pl.col("size").sum()).sort("source").iter_rows())
        parts = dict(share) if share else _tempered(amounts, temperature or 1.0)
        wanted = targets(amounts, parts)
        target = pl.col("source").replace_strict(wanted, return_dtype=pl.Float64)
        # A row is in where the rows before it leave room for it: half a row over is still one over.
        reached = pl.col("size").cum_sum().over("source")
        drawn = held.sort("source", "lot", "at").filter(reached <= target * (1 + 1e-12))
        held = _only(held, drawn, "weigh.share" if share else "weigh.temperature", left_out)
    stays = frame.select(~pl.col("train") | pl.col("at").is_in(held["at"].implode())).to_series()
    return stays, left_out


def targets(amounts: Mapping[str, float], parts: Mapping[str, float]) -> dict[str, float]:
    """How much of each source makes the largest mix with the parts asked for.

    Args:
        amounts: how much there is of each source.
        parts: the part of each, in any unit; a part of 0 leaves a source out.

    Raises:
        ValueError: a part for a source without rows, or a source without a part.

    >>> targets({"a": 100.0, "b": 10.0}, {"a": 0.5, "b": 0.5})
    {'a': 10.0, 'b': 10.0}
    """
    empty = [source for source, part in parts.items() if part > 0 and not amounts.get(source)]
    if empty:
        raise ValueError(f"weigh.share: no train row of {', '.join(empty)} is left to take a share of the mix")
    unnamed = [source for source in amounts if source not in parts]
    if unnamed:
        raise ValueError(f"weigh.share: no share for {', '.join(unnamed)}; name every source, 0 leaves one out")
    whole = min((amounts[source] / part for source, part in parts.items() if part > 0), default=0.0)
    return {source: whole * parts[source] for source in amounts}


def _tempered(amounts: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares as amount^(1/temperature), the largest as 1: of a small temperature the power itself may be no float."""
    most = max(amounts.values()) or 1.0
    return {source: (amount / most) ** (1.0 / temperature) for source, amount in amounts.items()}


def _only(before: pl.DataFrame, after: pl.DataFrame, reason: str, left_out: dict[str, int]) -> pl.DataFrame:
    if after.height < before.height:
        left_out[reason] = before.height - after.height
    return after
