"""Ratings, labels and ranks of one answer become its rating, reward and label."""

import polars as pl

from rlhf_data.rate.scales import quotient

VALUED = ("rating", "rank", "label")
ANSWER = ["prompt_row", "completion_row", "source"]


def out_of_scale(scale: tuple[float, float]) -> pl.Expr:
    """True of a rating outside the declared scale."""
    return (pl.col("kind") == "rating") & ~pl.col("value").is_between(*scale)


def combine_aspects(
    judgments: pl.DataFrame, weights: dict[str, float], *, missing: str | float = "refuse"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One rating per answer and annotator out of several aspects, whether they stand in one record or in several.

    Args:
        judgments: rows of kind rating; other kinds pass unchanged. `scaled` too where ratings were normalized.
        weights: weight of each aspect, > 0; the rating is the weighted mean.
        missing: of an aspect that an annotator did not rate: refuse the ratings, renormalize the weights over those
            that are there, or a number to take in its place.

    Returns:
        the judgments with combined ratings and `judgment_rows`, and those of answers that lack an aspect and are
        refused.
    """
    ratings = judgments.filter(pl.col("kind") == "rating")
    reader = [*ANSWER, "annotator"]
    weight = pl.col("aspect").cast(pl.String).replace_strict(weights, return_dtype=pl.Float64)
    marked = ratings.with_columns(_complete=pl.col("aspect").n_unique().over(reader) == len(weights))
    if missing != "refuse":
        marked = marked.with_columns(_complete=pl.lit(True))
    values, whole = [name for name in ("value", "scaled") if name in judgments.columns], sum(weights.values())

    def mean(name: str) -> pl.Expr:
        total, there = (pl.col(name) * weight).sum(), weight.sum()
        return total / there if isinstance(missing, str) else total + missing * (whole - there)

    combined = (
        marked.filter("_complete")
        .group_by(*reader, "aspect")
        .agg(*(pl.col(name).sort().mean() for name in values), pl.col("judgment_row"))
        .sort(pl.col("aspect").cast(pl.String))
        .group_by(reader, maintain_order=True)
        .agg(*(mean(name).alias(name) for name in values), judgment_rows=pl.col("judgment_row").explode())
        .with_columns(kind=pl.lit("rating", dtype=judgments.schema["kind"]))
    )
    if not isinstance(missing, str):
        combined = combined.with_columns(quotient(pl.col(name), whole) for name in values)
    others = judgments.filter(pl.col("kind") != "rating").with_columns(judgment_rows=pl.concat_list("judgment_row"))
    return pl.concat([others, combined], how="diagonal"), marked.filter(~pl.col("_complete")).drop("_complete")


def rate_answers(judgments: pl.DataFrame, *, scale: tuple[float, float] | None = None) -> pl.DataFrame:
    """One row per answer and source.

    Args:
        judgments: kinds rating, label, rank and demonstration; ratings within `scale`; behind each row the judgments
            in `judgment_rows`, or it is one itself, `judgment_row`. `scaled` where ratings were normalized.
        scale: (lowest, highest) of the ratings; the reward is then 0 at the lowest and 1 at the highest. Without it
            the reward is the rating. The reward of normalized ratings is the mean of `scaled`, whatever the scale.

    Returns:
        prompt_id, completion_id, source, rating (mean over annotators), reward (of a rating as above; of a rank, minus
        the place; of a label, 1 or -1), reward_std (over annotators, of what the
        reward is of; null for one), label (majority of labels, null
        for a tie), votes, raw_ref; sorted by ids.
    """
    low, high = scale or (0.0, 1.0)
    behind = pl.col("judgment_rows").explode() if "judgment_rows" in judgments.columns else pl.col("judgment_row")
    kinds = judgments["kind"].unique().cast(pl.String).to_list()
    sums = {"votes": pl.len().cast(pl.Int64), "judgment_rows": behind.unique().sort()}
    if kinds == ["rating"]:  # nothing to tell apart within an answer
        value = pl.col("value").sort()  # sorted: see votes.mean
        found = {"_rating": value.mean(), "_rating_std": value.std()}
    else:
        found = {name: value for kind in VALUED for name, value in _of(kind).items()}
    if "scaled" in judgments.columns:
        scaled = pl.col("scaled").drop_nulls().sort()
        found |= {"_scaled": scaled.mean(), "_scaled_std": scaled.std()}
    rated = _by_answer(judgments, found | sums)
    none = pl.lit(None, dtype=pl.Float64)
    known = {name: pl.col(name) if name in rated.columns else none for kind in VALUED for name in _of(kind)}
    liked = known["_label"]
    told, spread = (quotient(value, high - low) for value in (known["_rating"] - low, known["_rating_std"]))
    if "_scaled" in rated.columns:
        told, spread = pl.col("_scaled"), pl.col("_scaled_std")
    return rated.select(
        *ANSWER,
        rating=pl.coalesce(known["_rating"], known["_rank"]),
        reward=pl.coalesce(told, -known["_rank"], 2.0 * liked - 1.0),
        reward_std=pl.when(told.is_not_null())
        .then(spread)
        .when(known["_rank"].is_not_null())
        .then(known["_rank_std"])
        .otherwise(2.0 * known["_label_std"]),
        label=pl.when(liked > 0.5).then(True).when(liked < 0.5).then(False),
        votes="votes",
        judgment_rows="judgment_rows",
    ).sort("completion_row", pl.col("source").cast(pl.String))


def _of(kind: str) -> dict[str, pl.Expr]:
    """The mean and the spread of an answer's values of one kind."""
    values = pl.col("value").filter(pl.col("kind") == kind).sort()  # sorted: see votes.mean
    return {f"_{kind}": values.mean(), f"_{kind}_std": values.std()}


def _by_answer(judgments: pl.DataFrame, sums: dict[str, pl.Expr]) -> pl.DataFrame:
    """One row per answer and source; by row number alone, which is fast, where there is one source."""
    ordered = judgments.sort("completion_row", maintain_order=True)
    if judgments["source"].n_unique() > 1:
        return ordered.group_by(ANSWER, maintain_order=True).agg(**sums)
    row = ordered["completion_row"]
    again = (row == row.shift(1)).fill_null(False)
    often = again | again.shift(-1).fill_null(False)
    if any(name in judgments.columns for name in ("judgment_rows", "scaled")):
        often = pl.repeat(True, len(row), dtype=pl.Boolean, eager=True)
    grouped = ordered.filter(often).group_by("completion_row", maintain_order=True)
    several = grouped.agg(pl.col("prompt_row", "source").first(), **sums).select(*ANSWER, *sums)
    if often.all():
        return several
    # The only judgment of an answer, as most are, is its own mean.
    alone = {"votes": pl.lit(1, dtype=pl.Int64), "judgment_rows": pl.concat_list("judgment_row")}
    for kind in VALUED:
        alone[f"_{kind}"] = pl.when(pl.col("kind") == kind).then("value")
        alone[f"_{kind}_std"] = pl.lit(None, dtype=pl.Float64)
    return pl.concat([several, ordered.filter(~often).select(*ANSWER, **{name: alone[name] for name in sums})])
