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
from rlhf_data.texts import Chunk

RAW = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))


class Ingested(NamedTuple):
    """What a run of the step gave: its chunks' tables by ids, its quarantine and its two counts."""

    prompts: pl.DataFrame
    completions: pl.DataFrame
    judgments: pl.DataFrame
    quarantine: pl.DataFrame
    records: Count
    observations: Count

    def codes(self) -> list[str]:
        return self.quarantine["code"].to_list()


def told(chunks: list[Chunk]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Prompts, completions and judgments of chunks by ids, each text once, in the order in which they were read."""
    parts = []
    for chunk in chunks:
        prompts, completions, observed = (texts.read_chunk(chunk, part) for part in texts.PARTS[:3])
        asked = prompts["prompt_id"].gather(completions["prompt_row"])
        record = pl.col("record") + chunk.start
        judgments = observed.select(
            asked.gather(observed["completion_row"]),
            completions["completion_id"].gather(observed["completion_row"]),
            completions["completion_id"].gather(observed["other_row"]).alias("other_id"),
            *("kind", "value", "aspect", "annotator", "position"),
            raw_ref=pl.format("{}" + texts.SEPARATOR + "{}", "file", record),
        )
        parts.append((prompts, completions.drop("prompt_row").with_columns(asked), judgments))
    prompts, completions, judgments = (pl.concat(frames) for frames in zip(*parts, strict=True))
    return (
        prompts.unique("prompt_id", keep="first", maintain_order=True),
        completions.unique("completion_id", keep="first", maintain_order=True),
        judgments,
    )


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
        (out := tmp_path / "out").mkdir(exist_ok=True)
        counts = ingest(out, **{"chunks": tmp_path / "chunks", "source": "s", "files": files, **given})
        return Ingested(*told(texts.chunks_of(out)), tables.read(out / "quarantine.parquet", "quarantine"), *counts)

    return _run


def _as_file(records: Any, folder: Path) -> Path:
    if isinstance(records, Path):
        return records
    path = folder / "raw.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path
