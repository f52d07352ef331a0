"""One record of a raw file by its number, without reading more of the file than that takes."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data.sources import readers


def record_at(
    path: Path,
    record: int,
    *,
    format: str | None = None,
    quote: str | None = None,
    separator: str | None = None,
    sheet: str | None = None,
) -> Any:
    """The record that lineage calls FILE#record.

    Args:
        path: the raw file.
        record: its number, from 0; lines of JSON lines that are blank have none.
        format: see `readers.read`; as the other three.
        quote: for CSV and TSV.
        separator: for CSV and TSV.
        sheet: for Excel.

    Returns:
        the record as a mapping; the text itself where it is not JSON.

    Raises:
        ValueError: the file cannot be read, or has no such record.
    """
    kind = readers.format_of(path, format)
    if kind == "jsonl":
        return _line(path, record)
    if kind == "parquet" and path.suffix != ".gz":
        rows = pl.scan_parquet(path, glob=False).slice(record, 1).collect().to_dicts()
        return _only(rows, path, record)
    raw = readers.read(path, format=format, limit=record + 1, quote=quote, separator=separator, sheet=sheet)
    if record >= raw.height:
        _only([], path, record)
    return json.loads(raw.as_json(record))


def _line(path: Path, record: int) -> Any:
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as lines:
        nth = -1
        for line in lines:
            if line.strip():
                nth += 1
                if nth == record:
                    try:
                        return json.loads(line)
                    except ValueError:
                        return line.decode(errors="backslashreplace").rstrip("\r\n")
    return _only([], path, record)


def _only(rows: list[Any], path: Path, record: int) -> Any:
    if not rows:
        raise ValueError(f"{path} has no record {record}: it is shorter")
    return rows[0]
