"""The step `shape` to the unpaired table: one row per answer, whatever it was judged by."""

from pathlib import Path

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.shape.precedence import by_precedence

SIDES = ["prompt_row", "source", "judgment_rows"]


def to_unpaired(
    inputs: dict[str, Path],
    out: Path,
    *,
    label: str = "source",
    threshold: float = 0.0,
    gap: float = 0.0,
    ties: str = "drop",
    balance: float | None = None,
    seed: int = 0,
    sources: list[str] | None = None,
) -> list[Count]:
    """Rated and compared → rows.parquet, the unpaired table without its texts.

    Args:
        inputs: "rate" (rated, compared), "split" (splits) and "text" (completions).
        out: gets rows.parquet.
        label: where `label` comes from: "source" (what the source says; for compared answers, the sign of the reward),
            "threshold" (reward at least `threshold`) or "prompt_mean" (reward above the mean of its
            prompt's in its source).
        threshold: see `label`.
        gap: rewards less than this far from the threshold or the mean are in a grey zone and left out.
        ties: an answer that won as much as it lost, or that is its prompt's mean: "drop", or "soft" to keep it without
            a label.
        balance: the share of desirable rows among the labelled ones of the train split, reached by leaving out rows of
            the larger class, drawn by keyed hash.
        seed: of the keyed hash.
        sources: their names, in the spec's order: an answer that several hold is the first one's.
    """
    rated = tables.read(inputs["rate"] / "rated.parquet", "rated")
    compared = tables.read(inputs["rate"] / "compared.parquet", "compared")
    responses = unpair(compared)
    answers = pl.concat([rated, responses], how="diagonal")
    once = by_precedence(answers, sources).unique("completion_row", keep="first", maintain_order=True)
    labelled = once.with_columns(label=_label(label, threshold))
    reason = (
        pl.when(_grey(label, threshold, gap))
        .then(pl.lit("label in the grey zone"))
        .when(pl.lit(ties == "drop") & pl.col("label").is_null() & _undecided(label))
        .then(pl.lit("tie"))
    )
    judged = labelled.with_columns(_reason=reason.otherwise(pl.lit(None, dtype=pl.String)))
    kept = judged.filter(pl.col("_reason").is_null())
    left = judged.filter(pl.col("_reason").is_not_null()).group_by("_reason").len().sort("_reason")
    splits = tables.read(inputs["split"] / "splits.parquet", "splits")
    rows = kept.drop("_reason", "_compared").with_columns(weight=pl.lit(1.0)).join(splits, on="prompt_row")
    category = texts.read(inputs["text"], "completions", ["completion_row", "category"])
    rows = rows.join(category, on="completion_row", how="left").sort("completion_row")
    filtered = dict(left.iter_rows())
    if balance is not None:
        even = _balanced(
            rows, texts.read(inputs["text"], "completions", ["completion_row", "completion_id"]), balance, seed
        )
        filtered |= {"balance": rows.height - even.height} if even.height < rows.height else {}
        rows = even
    tables.write(rows, out / "rows.parquet", "unpaired_rows")
    merged = {
        "both sides of pairs into answers": 2 * compared.height - responses.height,
        "in several sources": answers.height - once.height,
    }
    return [
        Count(
            "shape",
            "answers and sides of pairs",
            rated.height + 2 * compared.height,
            rows.height,
            merged={reason: n for reason, n in merged.items() if n},
            filtered=filtered,
        )
    ]


def _balanced(rows: pl.DataFrame, named: pl.DataFrame, balance: float, seed: int) -> pl.DataFrame:
    """The rows without those of the larger class that are too many in the train split."""
    train = (pl.col("split") == "train") & pl.col("label").is_not_null()
    counted = {label: rows.filter(train & (pl.col("label") == label)).height for label in (True, False)}
    if not all(counted.values()):
        raise ValueError(f"shape.balance: no train row has label {str(not counted[True]).lower()}; nothing to balance")
    most = {True: counted[False] * balance / (1 - balance), False: counted[True] * (1 - balance) / balance}
    lots = ids.keyed_hash(texts.looked_up(rows["completion_row"], named, "completion_id"), "balance", seed)
    place = pl.struct("_lot", "completion_row").rank("ordinal").over("label", train)
    limit = pl.col("label").replace_strict(
        {k: int(v + 1e-9) for k, v in most.items()}, default=None, return_dtype=pl.Int64
    )
    return rows.with_columns(_lot=lots).filter(~train | (place <= limit).fill_null(True)).drop("_lot")


def unpair(compared: pl.DataFrame) -> pl.DataFrame:
    """Pairs → answers, at the level of the answer: one that won 3 votes and lost 1 is one row.

    Args:
        compared: pairs with preference and votes.

    Returns:
        One row per answer and source: reward (share of votes won minus share lost, -1 to 1), label (its sign; null at
        0), votes (over all its pairs), judgment_rows, and `_compared`, true.
    """
    won = pl.col("preference") * pl.col("votes")
    sides = pl.concat(
        [
            compared.select(*SIDES, "votes", completion_row="chosen_row", won=won),
            compared.select(*SIDES, "votes", completion_row="rejected_row", won=pl.col("votes") - won),
        ]
    )
    # Rounded: 15/22 · 22 is not 15 in floats, and who won as much as they lost has a reward of exactly 0.
    reward = (2.0 * pl.col("won").sort().sum() / pl.col("votes").sum() - 1.0).round(12)
    return (
        sides.group_by("prompt_row", "completion_row", "source")
        .agg(pl.col("votes").sum(), pl.col("judgment_rows").explode().unique().sort(), reward=reward)
        .with_columns(label=pl.when(pl.col("reward") != 0.0).then(pl.col("reward") > 0.0), _compared=pl.lit(True))
        .sort("completion_row", pl.col("source").cast(pl.String))
    )


def _above(label: str, threshold: float) -> pl.Expr:
    """How far the reward is above what divides desirable from undesirable."""
    if label == "threshold":
        return pl.col("reward") - threshold
    mean = pl.col("reward").sort().mean().over("prompt_row", "source")  # of one scale
    return (pl.col("reward") - mean).round(12)  # equal rewards are their mean, whatever their sum rounds to


def _label(label: str, threshold: float) -> pl.Expr:
    if label == "source":
        return pl.col("label")
    above = _above(label, threshold)
    # A reward at the threshold is desirable, as it says; one that equals its prompt's mean says nothing.
    at = pl.lit(True if label == "threshold" else None, dtype=pl.Boolean)
    return pl.when(above != 0.0).then(above > 0.0).when(above == 0.0).then(at)


def _undecided(label: str) -> pl.Expr:
    """Whether a row without a label has a reward that is no reason for one."""
    if label == "prompt_mean":
        return pl.col("reward").is_not_null()
    return pl.col("_compared") & (pl.col("reward") == 0.0)


def _grey(label: str, threshold: float, gap: float) -> pl.Expr:
    if label == "source":
        return pl.lit(False)
    # As for `min_margin`: 0.7 − 0.5 is a gap of 0.2 whatever it rounds to.
    return (_above(label, threshold).abs() < gap * (1.0 - 1e-12)).fill_null(False)
