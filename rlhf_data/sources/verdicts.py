"""What several adapters do with codes: verdicts by name, options by name, keys of joined tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from rlhf_data.sources.observations import Read, reasons


def compared(rows: pl.DataFrame, codes: Mapping[Any, float]) -> Read:
    """Comparisons whose verdict is a code.

    Args:
        rows: observations with `verdict` in place of kind and value.
        codes: the probability that `completion` beats `other`, by verdict.

    Returns:
        rows: comparisons, in the order of `rows`; a null verdict stays null and is refused as missing later on;
        rejects: `verdict.unknown` for any other verdict.
    """
    verdict = pl.col("verdict")
    known = verdict.is_null() | verdict.is_in(list(codes))
    value = verdict.replace_strict(codes, default=None, return_dtype=pl.Float64)
    shown = pl.format("{} is not one of {}", verdict, pl.lit(", ".join(map(str, codes))))
    return Read(
        rows.filter(known).with_columns(kind=pl.lit("comparison"), value=value).drop("verdict"),
        rejects=reasons(rows.filter(~known), "verdict.unknown", shown),
    )


def choose(option: str, value: str, choices: Sequence[str]) -> str:
    """The value of an option that has a few names.

    Raises:
        ValueError: none of them.
    """
    if value not in choices:
        raise ValueError(f"{option} is {value!r}: it must be {' or '.join(choices)}")
    return value


def once(adapter: str, name: str, table: pl.DataFrame, *keys: str) -> None:
    """Stop where a row to be joined would count twice.

    Raises:
        ValueError: rows with the same keys.
    """
    twice = table.filter(pl.struct(keys).is_duplicated()).select(keys)
    if twice.height:
        first = twice.row(0)
        count = sum(row == first for row in twice.iter_rows())
        shown = " and ".join(f"{key} {value}" for key, value in zip(keys, first, strict=True))
        raise ValueError(f"{adapter}: {name}: the {shown} occurs {count} times")
