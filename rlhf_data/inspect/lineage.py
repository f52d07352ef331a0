"""The tables between the steps, as long as the workspace holds them: which judgments a row was made of.

All that knows how those tables look is here: they name completions by row number, and a text folder's index says which
id a number is.
"""

from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import files
from rlhf_data.plan import Workspace, is_done
from rlhf_data.snapshot import Snapshot

SIDES = ("completion", "other", "chosen", "rejected")
VALUES = ("kind", "value", "aspect", "annotator", "position", "source", "raw_ref")


def steps_of(snapshot: Snapshot, workspace: Workspace) -> dict[str, Path]:
    """The folders of the steps that a snapshot was made by, in their order; without those that are there no more."""
    named = snapshot.manifest.get("steps") or {}
    folders = {step: workspace.step(facts["fingerprint"]) for step, facts in named.items()}
    return {step: folder for step, folder in folders.items() if is_done(folder)}


def texts_of(steps: dict[str, Path]) -> dict[str, Path]:
    """The text folders among the steps: what the sources gave together, and what each cleaning left of it."""
    return {step: folder for step, folder in steps.items() if step == "collect" or step.startswith("clean")}


def has(text: Path, completion_id: str) -> bool:
    """Whether a text folder holds a completion."""
    found = pl.scan_parquet(text / "completions.parquet").filter(pl.col("completion_id") == completion_id)
    return bool(found.select(pl.len()).collect().item())


def completions(text: Path, prefix: str) -> pl.DataFrame:
    """completion_id, prompt_id of completions whose id or whose prompt's id begins with `prefix`."""
    held = _identified(pl.scan_parquet(text / "completions.parquet"), text)
    return (
        held.select("completion_id", "prompt_id")
        .filter(begins("completion_id", prefix) | begins("prompt_id", prefix))
        .collect()
    )


def judged(text: Path, completion_ids: list[str]) -> list[dict[str, Any]]:
    """The judgments of completions, as mappings of completion_id, other_id and VALUES."""
    rows = naming(text / "judgments.parquet", text, completion_ids)
    if "file" in rows.columns:
        rows = rows.with_columns(raw_ref=pl.format("{}#{}", pl.col("file").cast(pl.String), "record"))
    return rows.select("completion_id", "other_id", *VALUES).to_dicts()


def recorded(text: Path, ref: str) -> list[str]:
    """The completions that a raw record is a judgment of."""
    held = pl.scan_parquet(text / "judgments.parquet")
    if "file" in held.collect_schema().names():
        file, _, record = ref.rpartition("#")
        held = held.filter((pl.col("file").cast(pl.String) == file) & (pl.col("record") == int(record)))
    else:
        held = held.filter(pl.col("raw_ref") == ref)
    rows = _identified(held, text).select("completion_id", "other_id").collect()
    return sorted({value for column in rows for value in column if value is not None})


def naming(path: Path, text: Path, completion_ids: list[str]) -> pl.DataFrame:
    """The rows of a step's table that name one of these completions, with ids in place of row numbers.

    Args:
        path: judgments, rated, compared or rows.
        text: the text folder that its row numbers are of.
        completion_ids: which completions.
    """
    held = pl.scan_parquet(path)
    columns = held.collect_schema().names()
    index = pl.scan_parquet(text / "completions.parquet")
    numbered = [f"{side}_row" for side in SIDES if f"{side}_row" in columns]
    if numbered:
        rows = index.filter(pl.col("completion_id").is_in(completion_ids)).select("completion_row").collect()
        wanted = rows.to_series().implode()
        held = held.filter(pl.any_horizontal(pl.col(column).is_in(wanted) for column in numbered))
    else:
        sides = [f"{side}_id" for side in SIDES if f"{side}_id" in columns]
        held = held.filter(pl.any_horizontal(pl.col(column).is_in(completion_ids) for column in sides))
    return _identified(held, text).collect()


def _identified(held: pl.LazyFrame, text: Path) -> pl.LazyFrame:
    """A table with ids beside its row numbers, where it has such."""
    columns = held.collect_schema().names()
    index = pl.scan_parquet(text / "completions.parquet")
    for side in SIDES:
        if f"{side}_row" in columns and f"{side}_id" not in columns:
            ids = index.select(
                pl.col("completion_row").alias(f"{side}_row"), pl.col("completion_id").alias(f"{side}_id")
            )
            held = held.join(ids, on=f"{side}_row", how="left", maintain_order="left")
    if "prompt_row" in columns and "prompt_id" not in columns:
        ids = pl.scan_parquet(text / "prompts.parquet").select("prompt_row", "prompt_id")
        held = held.join(ids, on="prompt_row", how="left", maintain_order="left")
    return held


def refused(snapshot: Snapshot, ids: list[str], refs: list[str]) -> list[dict[str, Any]]:
    """What the quarantine holds of rows with one of these ids, or of these raw records."""
    table = pl.scan_parquet(snapshot.path / "quarantine" / "quarantine.parquet")
    about = pl.col("raw_ref").list.eval(pl.element().is_in(refs)).list.any()
    if ids:
        about = about | pl.col("row").str.contains_any(ids)
    return table.filter(about).collect().to_dicts()


def raw_digest(path: Path, workspace: Workspace) -> str:
    """Digest of a raw file, remembered in the workspace if there is one."""
    return files.digests([path], workspace.digests)[0] if workspace.root.is_dir() else files.digest(path)


def begins(column: str, prefix: str) -> pl.Expr:
    """Whether an id begins with `prefix`."""
    # As a range, which Parquet's statistics can answer; no id has a letter after f.
    return (pl.col(column) >= prefix) & (pl.col(column) < prefix + "g")
