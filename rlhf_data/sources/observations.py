"""What an adapter gives: observations, with their texts in place. docs/design.md has the table of columns."""

from typing import NamedTuple

import polars as pl

from rlhf_data.ids import MESSAGES

# The columns of an observation and their types; `prompt` may be a String too, which means one user turn.
OBSERVATION: dict[str, pl.DataType] = {
    "record": pl.UInt32(),
    "prompt": MESSAGES,
    "completion": pl.String(),
    "other": pl.String(),
    "kind": pl.String(),
    "value": pl.Float64(),
    "aspect": pl.String(),
    "annotator": pl.String(),
    "position": pl.String(),
    "model": pl.String(),
    "other_model": pl.String(),
    "category": pl.String(),
}
REASON: dict[str, pl.DataType] = {"record": pl.UInt32(), "code": pl.String(), "detail": pl.String()}


class Read(NamedTuple):
    """What an adapter made of a raw file; every record is in at least one of the three.

    Attributes:
        rows: observations, in the order of the file.
        rejects: damaged parts of records: record, code ("thing.problem"), detail.
        skipped: records that hold no judgment: record, code, detail.
    """

    rows: pl.DataFrame
    rejects: pl.DataFrame = pl.DataFrame(schema=REASON)
    skipped: pl.DataFrame = pl.DataFrame(schema=REASON)


def reasons(raw: pl.DataFrame, code: str, detail: str | pl.Expr | None = None) -> pl.DataFrame:
    """Rows of `raw` (those to refuse or skip) as record, code, detail."""
    text = detail if isinstance(detail, pl.Expr) else pl.lit(detail, dtype=pl.String)
    return raw.select("record", code=pl.lit(code), detail=text.cast(pl.String))


def no_rows() -> pl.DataFrame:
    """An adapter's rows where a file gives none."""
    return pl.DataFrame(schema=OBSERVATION)
