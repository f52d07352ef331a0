"""The tables between the steps, as long as the workspace holds them: which judgments a row was made of.

All that knows how those tables look is here: they name prompts, completions and judgments by row number, and a text
folder says which id a number is. Only the rows that are asked for are read, so this takes no longer for large tables.
"""

from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import files
from rlhf_data.inspect.places import known, published_by
from rlhf_data.plan import Workspace, is_done
from rlhf_data.snapshot import Snapshot

SIDES = ("completion", "other", "chosen", "rejected")
VALUES = ("kind", "value", "aspect", "annotator", "position", "source", "raw_ref")


def steps_of(snapshot: Snapshot, workspace: Workspace) -> dict[str, Path]:
    """The folders of the steps that a snapshot was made by, in their order; without those that are there no more.

    Where the last build gave the same content again, its steps are these; else those that the manifest names.
    """
    named = {step: facts["fingerprint"] for step, facts in (snapshot.manifest.get("steps") or {}).items()}
    for spec in known(workspace).values():
        if published_by(spec, workspace) == snapshot.path.resolve():
            named = {step: fingerprint for step, fingerprint in spec.steps.items() if step != "publish"}
    folders = {step: workspace.step(fingerprint) for step, fingerprint in named.items()}
    return {step: folder for step, folder in folders.items() if is_done(folder)}


def texts_of(steps: dict[str, Path]) -> dict[str, Path]:
    """The text folders among the steps: what the sources gave together, and what each cleaning left of it."""
    return {step: folder for step, folder in steps.items() if step == "collect" or step.startswith("clean")}


def has(text: Path, completion_id: str) -> bool:
    """Whether a text folder holds a completion."""
    return bool(_numbers(text, [completion_id]).len())


def completions(text: Path, prefix: str) -> pl.DataFrame:
    """completion_id, prompt_id of completions whose id or whose prompt's id begins with `prefix`."""
    prompts = pl.scan_parquet(text / "prompts.parquet").filter(begins("prompt_id", prefix)).select("prompt_row")
    of_prompt = pl.col("prompt_row").is_in(prompts.collect().to_series().implode())
    index = pl.scan_parquet(text / "completions.parquet").filter(begins("completion_id", prefix) | of_prompt)
    return _identified(index.select("prompt_row", "completion_id").collect(), text).select("completion_id", "prompt_id")


def judged(text: Path, completion_ids: list[str]) -> list[dict[str, Any]]:
    """The judgments of completions, as mappings of completion_id, other_id and VALUES."""
    rows = naming(text / "judgments.parquet", text, completion_ids)
    ref = pl.format("{}#{}", "file", "record")
    return rows.with_columns(raw_ref=ref).select("completion_id", "other_id", *VALUES).to_dicts()


def recorded(text: Path, ref: str) -> list[str]:
    """The completions that a raw record is a judgment of."""
    file, _, record = ref.rpartition("#")
    if not record.isdigit():
        return []
    held = pl.scan_parquet(text / "judgments.parquet")
    held = held.filter((pl.col("record") == int(record)) & (pl.col("file").cast(pl.String) == file))
    rows = _identified(held.select("completion_row", "other_row").collect(), text)
    return sorted({value for side in ("completion_id", "other_id") for value in rows[side].drop_nulls()})


def naming(path: Path, text: Path, completion_ids: list[str]) -> pl.DataFrame:
    """The rows of a step's table that name one of these completions, with ids beside the row numbers.

    Args:
        path: judgments, rated, compared or rows.
        text: the text folder that its row numbers are of.
        completion_ids: which completions.
    """
    held = pl.scan_parquet(path)
    columns = held.collect_schema().names()
    wanted = _numbers(text, completion_ids)
    sides = [f"{side}_row" for side in SIDES if f"{side}_row" in columns]
    rows = held.filter(pl.any_horizontal(pl.col(side).is_in(wanted.implode()) for side in sides)).collect()
    return _identified(rows.with_columns(pl.col(pl.Categorical).cast(pl.String)), text)


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
    """Whether an id begins with `prefix`: as a range, which Parquet's statistics can answer; no id goes beyond f."""
    return (pl.col(column) >= prefix) & (pl.col(column) < prefix + "g")


def _numbers(text: Path, completion_ids: list[str]) -> pl.Series:
    """The row numbers of completions; of those that the text folder does not hold, none."""
    index = pl.scan_parquet(text / "completions.parquet").filter(pl.col("completion_id").is_in(completion_ids))
    return index.select("completion_row").collect().to_series()


def _identified(rows: pl.DataFrame, text: Path) -> pl.DataFrame:
    """A few rows with the ids of their prompts and completions beside the numbers."""
    for side in (*SIDES, "prompt"):
        if f"{side}_row" in rows.columns:
            kind = "prompt" if side == "prompt" else "completion"
            index = pl.scan_parquet(text / f"{kind}s.parquet").filter(
                pl.col(f"{kind}_row").is_in(rows[f"{side}_row"].drop_nulls().unique().implode())
            )
            ids = index.select(pl.col(f"{kind}_row").alias(f"{side}_row"), pl.col(f"{kind}_id").alias(f"{side}_id"))
            rows = rows.join(ids.collect(), on=f"{side}_row", how="left", maintain_order="left")
    return rows
