"""What the tests of sources share: the raw data, where it is, and the step run on a few records."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from rlhf_data import tables
from rlhf_data.accounting import Count
from rlhf_data.sources.ingest import ingest

RAW = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))


class Ingested(NamedTuple):
    """The four tables and the two counts of a run of the step."""

    prompts: pl.DataFrame
    completions: pl.DataFrame
    judgments: pl.DataFrame
    quarantine: pl.DataFrame
    records: Count
    observations: Count

    def codes(self) -> list[str]:
        return self.quarantine["code"].to_list()


@pytest.fixture(scope="session")
def raw() -> Path:
    """The folder of real raw data."""
    if not RAW.is_dir():
        pytest.skip(f"no raw data at {RAW}; set RLHF_DATA_RAW")
    return RAW


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ingested]:
    """The step on files, or on records that are written as JSON lines first."""

    def _run(records: Any, **given: Any) -> Ingested:
        files = records if isinstance(records, dict) else {"raw": [str(_as_file(records, tmp_path))]}
        out = tmp_path / "out"
        counts = ingest(out, **{"source": "s", "files": files, **given})
        names = ("prompts", "completions", "judgments", "quarantine")
        return Ingested(*(tables.read(out / f"{name}.parquet", name) for name in names), *counts)

    return _run


def _as_file(records: Any, folder: Path) -> Path:
    if isinstance(records, Path):
        return records
    path = folder / "raw.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path
