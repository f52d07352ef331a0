"""Rows that a step refuses, on their way to the quarantine table."""

from typing import NamedTuple

import polars as pl

from rlhf_data import tables


class Refusal(NamedTuple):
    """Rows refused for one reason.

    Attributes:
        code: "thing.problem", such as "rating.out_of_scale".
        rows: the rows; `source` and `raw_ref` (one or a list) among their columns.
        detail: what was expected.
    """

    code: str
    rows: pl.DataFrame
    detail: str | None = None


def refusals(refused: list[Refusal], step: str) -> pl.DataFrame:
    """The rows of all refusals as one quarantine table; each row whole, as JSON."""
    frames = [
        r.rows.select(
            "source",
            raw_ref="raw_ref" if isinstance(r.rows.schema["raw_ref"], pl.List) else pl.concat_list("raw_ref"),
            step=pl.lit(step),
            code=pl.lit(r.code),
            detail=pl.lit(r.detail, dtype=pl.String),
            row=pl.struct(pl.all()).struct.json_encode(),
        )
        for r in refused
    ]
    return pl.concat([tables.empty("quarantine"), *frames])
