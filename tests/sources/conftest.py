"""What the tests of sources share: the raw data, where it is, and the step run on a few records."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from rlhf_data import tables, texts
from rlhf_data.accounting import Count
from rlhf_data.sources.ingest import ingest

RAW = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))


class Ingested(NamedTuple):
    """What the step gave, its chunks one below the other with ids in place of row numbers, and its two counts."""

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
        out.mkdir(exist_ok=True)
        counts = ingest(out, **{"chunks": tmp_path / "chunks", "source": "s", "files": files, **given})
        parts = [_chunk(chunk) for chunk in texts.chunks_of(out)]
        prompts, completions, judgments = (pl.concat(part[k] for part in parts) for k in range(3))
        once = (
            prompts.unique("prompt_id", maintain_order=True),
            completions.unique("completion_id", maintain_order=True),
        )
        return Ingested(*once, judgments, tables.read(out / "quarantine.parquet", "quarantine"), *counts)

    return _run


def _as_file(records: Any, folder: Path) -> Path:
    if isinstance(records, Path):
        return records
    path = folder / "raw.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def _chunk(chunk: texts.Chunk) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The prompts, completions and judgments of a chunk."""
    prompts, completions, observed = (texts.read_chunk(chunk, part) for part in ("prompts", "completions", "observed"))
    asked = prompts.select("prompt_id").with_row_index("prompt_row")
    completions = completions.join(asked, on="prompt_row", how="left", maintain_order="left")
    said = completions.select("completion_id", "prompt_id").with_row_index("row")
    judgments = observed.join(
        said.rename({"row": "completion_row"}), on="completion_row", how="left", maintain_order="left"
    )
    other = said.select(other_row="row", other_id="completion_id")
    judgments = judgments.join(other, on="other_row", how="left", maintain_order="left")
    ref = pl.concat_str("file", pl.col("record") + chunk.start, separator=texts.SEPARATOR)
    judgments = judgments.with_columns(source=pl.lit(chunk.source), raw_ref=ref)
    return prompts, completions.drop("prompt_row"), judgments.drop("completion_row", "other_row", "file", "record")
