"""Exact duplicates: rows whose texts are the same but for case, white space and Unicode form."""

from collections.abc import Sequence

import polars as pl
from xxhash import xxh3_128_hexdigest

from rlhf_data.clean.ngrams import listed, normalised

KEYS = ("prompt", "completion", "pair")


def text_keys(texts: pl.Series | Sequence[str]) -> pl.Series:
    """xxh3-128 of each normalised text, as 32 hex digits.

    >>> keys = text_keys(["Hello  world", "hello WORLD ", "hello"])
    >>> keys[0] == keys[1], keys[0] == keys[2]
    (True, False)
    """
    return pl.Series("key", [xxh3_128_hexdigest(normalised(text).encode()) for text in listed(texts)], dtype=pl.String)


def joined_keys(*keys: pl.Series) -> pl.Series:
    """One key of several, in their order: of prompt and completion, say."""
    return pl.select(pl.concat_str(pl.Series(str(k), key) for k, key in enumerate(keys)).alias("key"))["key"]


def pair_keys(prompt: pl.Series, first: pl.Series, second: pl.Series) -> pl.Series:
    """The key of a prompt and two of its completions, whichever stands first."""
    either = pl.select(first=pl.min_horizontal(first, second), second=pl.max_horizontal(first, second))
    return joined_keys(prompt, either["first"], either["second"])


def representatives(groups: pl.Series, ids: pl.Series, ratings: pl.Series | None = None) -> pl.Series:
    """The row that stands for each row: the best rated one of its group; among equals, that of the smallest id.

    Args:
        groups: what rows have in common: keys of their texts, or clusters of near-duplicates; (n,).
        ids: content ids, or row numbers in the order of them; unique.
        ratings: how good each row is; null where unknown, which is less than any rating. None: no row is better.

    Returns:
        (n,) UInt32 row numbers, named "kept"; a row that stands for itself is kept.
    """
    unrated = pl.Series("rating", [None], dtype=pl.Float64).new_from_index(0, ids.len())
    rows = pl.DataFrame({"group": groups, "id": ids, "rating": unrated if ratings is None else ratings})
    rows = rows.with_row_index("row")
    best = rows.sort("rating", "id", descending=[True, False], nulls_last=True).unique("group", keep="first")
    kept = best.select("group", kept="row")
    return rows.join(kept, on="group", maintain_order="left")["kept"]


def standings(judgments: pl.DataFrame) -> pl.DataFrame:
    """How well each completion was rated among those of its source, from 0 to 1.

    The scales of two sources, or of two aspects, have nothing in common but their order: a rating becomes the share
    of its scale's ratings that are below it (half of its equals counted), and a completion's standing is the mean
    over its ratings.

    Args:
        judgments: completion_row or completion_id, kind, value, aspect, source; ratings and labels are heard.

    Returns:
        The completion's column and `standing`; completions that were never rated are absent.
    """
    completion = "completion_row" if "completion_row" in judgments.columns else "completion_id"
    scale = ["source", "kind", "aspect"]
    return (
        judgments.filter(pl.col("kind").is_in(["rating", "label"]) & pl.col("value").is_not_null())
        .with_columns(standing=(pl.col("value").rank("average").over(scale) - 0.5) / pl.len().over(scale))
        .group_by(completion)
        .agg(pl.col("standing").sort().mean())  # sorted: a sum of floats depends on their order
        .sort(completion)
    )
