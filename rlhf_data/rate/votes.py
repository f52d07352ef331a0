"""Comparisons of the same two answers become one preference."""

import polars as pl

PAIR = ["prompt_row", "first_row", "second_row", "source"]


def mean(value: pl.Expr) -> pl.Expr:
    """The mean probability that the first answer is preferred; a tie counts one half."""
    return value.sort().mean()  # sorted: a float sum must not depend on the order of rows or threads


def majority(value: pl.Expr) -> pl.Expr:
    """1 or 0 where one side has more votes than the other side and than the ties; one half otherwise."""
    first, second, tie = (value > 0.5).sum(), (value < 0.5).sum(), (value == 0.5).sum()
    return (
        pl.when((first > second) & (first > tie))
        .then(1.0)
        .when((second > first) & (second > tie))
        .then(0.0)
        .otherwise(0.5)
    )


METHODS = {"mean": mean, "majority": majority}


def compare(judgments: pl.DataFrame, *, method: str = "mean") -> pl.DataFrame:
    """One row per unordered pair and source, the answer with the larger share of votes as chosen.

    Args:
        judgments: rows of kind comparison.
        method: a name of METHODS.

    Returns:
        prompt_row, chosen_row, rejected_row, source, preference (0.5 to 1), votes, judgment_rows; in the order of
        rows. Of a tie, the smaller id is called chosen, so that which answer was shown first cannot matter.
    """
    swapped = pl.col("completion_row") > pl.col("other_row")
    won, lost = pl.col("value"), 1.0 - pl.col("value")
    oriented = judgments.select(
        "prompt_row",
        "source",
        "judgment_row",
        first_row=pl.min_horizontal("completion_row", "other_row"),
        second_row=pl.max_horizontal("completion_row", "other_row"),
        first=pl.when(swapped).then(lost).otherwise(won),
        second=pl.when(swapped).then(won).otherwise(lost),
    )
    grouped = oriented.group_by(PAIR).agg(
        # each side by itself, not one as 1 − the other: two votes in three are the same number on either side
        first=METHODS[method](pl.col("first")),
        second=METHODS[method](pl.col("second")),
        votes=pl.len().cast(pl.Int64),
        judgment_rows=pl.col("judgment_row").sort(),
    )
    first = pl.col("first") >= pl.col("second")
    return grouped.sort("first_row", "second_row", pl.col("source").cast(pl.String)).select(
        "prompt_row",
        chosen_row=pl.when(first).then("first_row").otherwise("second_row"),
        rejected_row=pl.when(first).then("second_row").otherwise("first_row"),
        source="source",
        preference=pl.max_horizontal("first", "second", 0.5),
        votes="votes",
        judgment_rows="judgment_rows",
    )
