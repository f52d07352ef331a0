"""Raw columns that a spec's `keep_columns` carries through to the published rows, as text."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from rlhf_data import tables
from rlhf_data.sources.readers import Raw, encodes, json_text
from rlhf_data.words import hint

EXACT = (pl.String, pl.Int64, pl.Boolean)  # of which a frame and the JSON that it was read from give one text


def kept(raws: Sequence[Raw], columns: Sequence[str]) -> pl.DataFrame:
    """The values of some columns of raw records.

    A value is the text that it is, anything else as JSON: a file's pieces may be of different types, and the same
    record must give the same value wherever its file is cut.

    Args:
        raws: files, or pieces of them.
        columns: names of their columns.

    Returns:
        file, record (its place in its file), column, value (String); absent and null values are left out.

    Raises:
        ValueError: a file that has no such column.
    """
    parts = [tables.empty("kept")]
    for raw in raws:
        names = [] if raw.height == len(raw.broken) else raw.columns()  # there is nothing in it to keep
        if lacking := raw.lacks(columns) if names else []:
            first = lacking[0]
            raise ValueError(
                f"{raw.name}: keep_columns: no column {first!r}{hint(first, names, '; ')}; its columns are "
                f"{', '.join(names)}"
            )
        for column in (column for column in columns if column in names):
            values = pl.DataFrame({"value": _texts(raw, column)}).with_row_index("record")
            found = values.drop_nulls().with_columns(file=pl.lit(raw.name), column=pl.lit(column))
            parts.append(found.select(parts[0].columns))
    return pl.concat(parts)


def _texts(raw: Raw, column: str) -> pl.Series:
    frame = raw.quick if raw.quick is not None else raw.rows
    if isinstance(frame, pl.DataFrame) and frame.schema[column] in EXACT:
        return frame[column].cast(pl.String)
    if isinstance(raw.rows, pl.DataFrame):
        return pl.Series([_text(value) for value in raw.rows[column]], dtype=pl.String)
    return pl.Series([None if row is None else _text(row.get(column)) for row in raw.rows], dtype=pl.String)


def _text(value: Any) -> str | None:
    if isinstance(value, pl.Series):
        value = value.to_list()
    return value if value is None or (isinstance(value, str) and encodes(value)) else json_text(value)
