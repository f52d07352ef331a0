"""Ratings of several people or sources brought onto one scale."""

import polars as pl

PER = {"annotator": ["source", "annotator", "aspect"], "source": ["source", "aspect"]}


def zscore(value: pl.Expr, group: list[str]) -> pl.Expr:
    """(value − mean) / standard deviation (of the population) within each group; 0 where all are equal, or alone."""
    ordered = value.sort()  # sums of floats must not depend on the order of rows
    mean, std = ordered.mean().over(group), ordered.std(ddof=0).over(group)
    # Equal values have a standard deviation of rounding errors, so they are asked for themselves.
    equal = (value.min() == value.max()).over(group)
    return pl.when(equal).then(0.0).otherwise((value - mean) / std)


def rank(value: pl.Expr, group: list[str]) -> pl.Expr:
    """(rank − ½) / n within each group of n, from the lowest; ties share their mean rank, one alone has ½."""
    return (value.rank("average").over(group) - 0.5) / pl.len().over(group)


def quotient(value: pl.Expr, by: float) -> pl.Expr:
    """`value / by`, to the last digit whatever stands beside it.

    Of several rows polars multiplies by `1 / by` (3 / 5 is then 0.6000000000000001), of a lone or a constant one it
    divides: what is said of other answers would change a row.
    """
    return value.map_batches(
        lambda held: pl.Series(held.to_numpy() / by, dtype=pl.Float64, nan_to_null=True),
        return_dtype=pl.Float64,
        is_elementwise=True,
    )


METHODS = {"zscore": zscore, "rank": rank}


def normalize(judgments: pl.DataFrame, method: str, per: str = "annotator") -> pl.DataFrame:
    """`judgments` with `scaled`: each rating by what the same person, or the same source, gave otherwise.

    Each aspect is a scale of its own. Ratings without an annotator count as one person's, of their source.

    Args:
        judgments: kind, value, source, annotator, aspect. Kinds other than rating have no `scaled`.
        method: a name of METHODS.
        per: annotator or source.

    Raises:
        ValueError: an unknown word.
    """
    if method not in METHODS:
        raise ValueError(f"no way to normalize named {method!r}; known: {', '.join(METHODS)}")
    if per not in PER:
        raise ValueError(f"ratings are normalized per {' or '.join(PER)}, not per {per!r}")
    # Other kinds have values too, which must not enter the ratings' mean.
    return judgments.with_columns(
        scaled=pl.when(pl.col("kind") == "rating").then(METHODS[method](pl.col("value"), [*PER[per], "kind"]))
    )
