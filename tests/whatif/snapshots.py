"""Published snapshots made up for these tests: real in shape, seeded, scored by nothing but a generator."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import tables
from tests.report.conftest import make_manifest, make_paired, make_unpaired


def paired(folder: Path, n: int = 60, **over: Any) -> Path:
    return write(folder, make_paired(n, **({"splits": ("train",), "preference": 1.0} | over)))


def unpaired(folder: Path, n: int = 60, **over: Any) -> Path:
    """Completions with labels, rewards and partners: the next one, scored at twice its own log-prob."""
    rows = make_unpaired(n, **({"splits": ("train",), "scored": True, "label": [k % 3 > 0 for k in range(n)]} | over))
    if rows["ref_logps"].null_count() < n and "mismatched_id" not in over:
        rows = rows.with_columns(
            mismatched_id=pl.col("completion_id").shift(-1, fill_value=rows["completion_id"][0]),
            ref_mismatched_logps=pl.col("ref_logps") * 2,
        )
    return write(folder, tables.conform(rows, "unpaired"))


def write(folder: Path, rows: pl.DataFrame) -> Path:
    snapshot = folder / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    table = "paired" if "pair_id" in rows.columns else "unpaired"
    files = []
    for split in rows["split"].unique(maintain_order=True):
        path = snapshot / "data" / f"{split}-00000-of-00001.parquet"
        rows.filter(pl.col("split") == split).write_parquet(path)
        files.append({"path": str(path.relative_to(snapshot)), "rows": rows.height, "bytes": path.stat().st_size})
    manifest = make_manifest(rows, table=table, files=files)
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    (snapshot / "_SUCCESS").touch()
    return snapshot
