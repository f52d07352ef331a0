"""Ratings, labels and ranks of one answer become its rating, reward and label."""

import polars as pl

ANSWER = ["prompt_id", "completion_id", "source"]


def out_of_scale(scale: tuple[float, float]) -> pl.Expr:
    """True of a rating outside the declared scale."""
    return (pl.col("kind") == "rating") & ~pl.col("value").is_between(*scale)


def combine_aspects(judgments: pl.DataFrame, weights: dict[str, float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One rating per answer and annotator out of several aspects, whether they stand in one record or in several.

    Args:
        judgments: rows of kind rating; other kinds pass unchanged. `raw_ref` is a list.
        weights: weight of each aspect, at least one positive; the rating is the weighted mean.

    Returns:
        the judgments with combined ratings, and those of answers that lack an aspect (to refuse).
    """
    ratings = judgments.filter(pl.col("kind") == "rating")
    reader = [*ANSWER, "annotator"]
    weight = pl.col("aspect").replace_strict(weights, return_dtype=pl.Float64)
    marked = ratings.with_columns(_complete=pl.col("aspect").n_unique().over(reader) == len(weights))
    combined = (
        marked.filter("_complete")
        .group_by(*reader, "aspect")
        .agg(pl.col("value").sort().mean(), pl.col("raw_ref").explode())
        .sort("aspect")
        .group_by(reader, maintain_order=True)
        .agg(value=(pl.col("value") * weight).sum() / sum(weights.values()), raw_ref=pl.col("raw_ref").explode())
    )
    whole = pl.concat([judgments.filter(pl.col("kind") != "rating"), _as_ratings(combined, judgments)])
    return whole, marked.filter(~pl.col("_complete")).drop("_complete")


def rate_answers(judgments: pl.DataFrame, *, scale: tuple[float, float] | None = None) -> pl.DataFrame:
    """One row per answer and source.

    Args:
        judgments: kinds rating, label, rank and demonstration; ratings within `scale`; `raw_ref` is a list.
        scale: (lowest, highest) of the ratings; the reward is then 0 at the lowest and 1 at the highest. Without it
            the reward is the rating.

    Returns:
        prompt_id, completion_id, source, rating (mean over annotators), reward (of a rating as above; of a rank, minus
        the place; of a label, 1 or -1), reward_std (over annotators; null for one), label (majority of labels, null
        for a tie), votes, raw_ref; sorted by ids.
    """
    low, high = scale or (0.0, 1.0)

    def values(kind: str) -> pl.Expr:
        return pl.col("value").filter(pl.col("kind") == kind).sort()  # sorted: see votes.mean

    def of_rating(rating: pl.Expr) -> pl.Expr:
        return (rating - low) / (high - low)

    label = values("label").mean()
    return (
        judgments.group_by(ANSWER)
        .agg(
            rating=pl.coalesce(values("rating").mean(), values("rank").mean()),
            reward=pl.coalesce(of_rating(values("rating").mean()), -values("rank").mean(), 2.0 * label - 1.0),
            reward_std=pl.coalesce(
                values("rating").std() / (high - low), values("rank").std(), 2.0 * values("label").std()
            ),
            label=pl.when(label > 0.5).then(True).when(label < 0.5).then(False),
            votes=pl.len().cast(pl.Int64),
            raw_ref=pl.col("raw_ref").explode().unique().sort(),
        )
        .sort("prompt_id", "completion_id", "source")
    )


def _as_ratings(combined: pl.DataFrame, judgments: pl.DataFrame) -> pl.DataFrame:
    constant = {"other_id": None, "kind": "rating", "aspect": None, "position": None}
    return combined.with_columns(pl.lit(value, dtype=pl.String).alias(name) for name, value in constant.items()).select(
        judgments.columns
    )
