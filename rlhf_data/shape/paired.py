"""The step `shape` to the paired table: compared pairs as they are given, rated answers by a strategy."""

from pathlib import Path

import polars as pl

from rlhf_data import ids, tables
from rlhf_data.accounting import Count
from rlhf_data.shape.pairing import STRATEGIES
from rlhf_data.shape.precedence import by_precedence

AS_GIVEN = "as_given"


def to_paired(
    inputs: dict[str, Path],
    out: Path,
    *,
    pairing: str = "best_vs_worst",
    min_margin: float = 0.0,
    ties: str = "drop",
    seed: int = 0,
    sources: list[str] | None = None,
) -> list[Count]:
    """Rated and compared → rows.parquet, the paired table without its texts.

    Compared pairs are taken as given, whatever the strategy; it is for rated answers. Two rows of the same two answers
    are one pair: an earlier source wins over a later one, and in it a compared pair over one made from ratings.

    Args:
        inputs: "rate" (rated, compared) and "split" (splits).
        out: gets rows.parquet.
        pairing: a name of STRATEGIES, or "as_given" to leave rated answers out.
        min_margin: smallest gap of rewards, for pairs made from ratings.
        ties: "drop", or "soft" to keep a tie as preference 0.5.
        seed: of the keyed hashes.
        sources: their names, in the spec's order.
    """
    rated = tables.read(inputs["rate"] / "rated.parquet", "rated")
    compared = tables.read(inputs["rate"] / "compared.parquet", "compared")
    answers = rated.filter(pl.col("reward").is_not_null()) if pairing != AS_GIVEN else rated.clear()
    proposed = STRATEGIES[pairing](answers, seed) if pairing != AS_GIVEN else None
    given = compared.with_columns(margin=pl.lit(None, dtype=pl.Float64))
    candidates = (
        given if proposed is None else pl.concat([given, proposed.with_columns(preference=pl.lit(1.0))], how="diagonal")
    )
    kept, filtered = _choose(candidates, min_margin=min_margin, ties=ties)
    kept = by_precedence(kept, sources)
    unordered = [pl.min_horizontal("chosen_id", "rejected_id"), pl.max_horizontal("chosen_id", "rejected_id")]
    pairs = kept.unique(unordered, keep="first", maintain_order=True)
    rows = pairs.with_columns(
        ids.pair_ids(pairs["chosen_id"], pairs["rejected_id"], "pair_id"), weight=pl.lit(1.0)
    ).join(tables.read(inputs["split"] / "splits.parquet", "splits"), on="prompt_id")
    tables.write(rows.sort("prompt_id", "pair_id"), out / "rows.parquet", "paired_rows")
    merged = kept.height - pairs.height
    used = pl.concat([pairs["chosen_id"], pairs["rejected_id"]]).unique().implode()
    unused = rated.filter(~pl.col("completion_id").is_in(used))
    return [
        Count(
            "shape",
            "candidate pairs",
            candidates.height,
            rows.height,
            merged={"the same two answers": merged} if merged else {},
            filtered=filtered,
        ),
        Count(
            "shape",
            "rated answers",
            rated.height,
            rated.height - unused.height,
            filtered=_unused(unused, pairing),
        ),
    ]


def _choose(candidates: pl.DataFrame, *, min_margin: float, ties: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """The candidates that become pairs, and how many do not, by reason."""
    tie = (pl.col("preference") == 0.5) | (pl.col("margin") == 0.0).fill_null(False)
    close = ~tie & (pl.col("margin") < min_margin).fill_null(False)
    reason = (
        pl.when(tie & (ties == "drop")).then(pl.lit("tie")).when(close).then(pl.lit(f"margin under {min_margin:g}"))
    )
    judged = candidates.with_columns(
        _reason=reason.otherwise(pl.lit(None, dtype=pl.String)),
        preference=pl.when(tie).then(0.5).otherwise("preference"),
    )
    left = judged.filter(pl.col("_reason").is_not_null())
    return judged.filter(pl.col("_reason").is_null()).drop("_reason"), _by_reason(left["_reason"])


def _unused(unused: pl.DataFrame, pairing: str) -> dict[str, int]:
    if pairing == AS_GIVEN:
        return {"not compared, and pairing is as_given": unused.height} if unused.height else {}
    reason = pl.when(pl.col("reward").is_null()).then(pl.lit("no reward")).otherwise(pl.lit("in no pair"))
    return _by_reason(unused.select(reason.alias("reason"))["reason"])


def _by_reason(reasons: pl.Series) -> dict[str, int]:
    return dict(reasons.alias("reason").to_frame().group_by("reason").len().sort("reason").iter_rows())
