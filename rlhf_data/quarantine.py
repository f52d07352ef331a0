"""Rows that a step refuses, on their way to the quarantine table."""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from rlhf_data import tables, texts


class Refusal(NamedTuple):
    """Rows refused for one reason.

    Attributes:
        code: "thing.problem", such as "rating.out_of_scale".
        rows: the rows, by row numbers; with `source`, and with `judgment_rows` or, of judgments, file and record.
        detail: what was expected.
    """

    code: str
    rows: pl.DataFrame
    detail: str | None = None


def refusals(refused: list[Refusal], step: str, text: Path, rate: Path | None = None) -> pl.DataFrame:
    """The rows of all refusals as one quarantine table; each row whole, as JSON, with ids and lineage.

    Args:
        refused: may be without rows.
        step: which refused them.
        text: the text folder that the row numbers are of.
        rate: the folder of what was rated, where the rows are pairs.
    """
    frames = [tables.empty("quarantine")]
    refused = [refusal for refusal in refused if refusal.rows.height]
    if refused:
        names, behind = texts.names(text), None if rate is None else texts.behind(rate)
        for refusal in refused:
            known = refusal.rows if behind is None else texts.with_judgments(refusal.rows, behind)
            rows = texts.identify(known, names).with_columns(pl.col(pl.Categorical).cast(pl.String))
            frames.append(
                rows.select(
                    "source",
                    "raw_ref",
                    step=pl.lit(step),
                    code=pl.lit(refusal.code),
                    detail=pl.lit(refusal.detail, dtype=pl.String),
                    row=pl.struct(pl.all()).struct.json_encode(),
                )
            )
    return pl.concat(frames)
