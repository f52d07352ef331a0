"""A snapshot at a glance: what it is, what is in it, some rows."""

from typing import Any

import polars as pl

from rlhf_data.snapshot import Snapshot

NUMBERS = {"paired": ("margin", "preference", "votes", "weight"), "unpaired": ("reward", "votes", "weight")}


def glance(snapshot: Snapshot, *, split: str | None = None, rows: int = 3) -> dict[str, Any]:
    """What a person asks first of a snapshot.

    Args:
        snapshot: which.
        split: of which split only.
        rows: how many of them to show.

    Returns:
        prompts; sources and categories (rows of each, the largest first; a null category is left out); labels (rows of
        each, where there are any); numbers (least, mean and largest of each that is not always null); scored (rows with
        reference log-probs); refused (rows by code); rows.

    Raises:
        ValueError: the snapshot has no such split.
    """
    table = snapshot.manifest["table"]
    held, first = snapshot.scan(split), split or next(iter(snapshot.manifest["rows"]), None)
    reference = "ref_chosen_logps" if table == "paired" else "ref_logps"
    groups = ["source", "category", *(["label"] if table == "unpaired" else [])]
    counted = [held.select(pl.col(c).drop_nulls().value_counts(sort=True)) for c in groups]
    figures = held.select(
        pl.col("prompt_id").n_unique(),
        pl.col(reference).count().alias("scored"),
        *(
            pl.concat_list(getattr(pl.col(name), kind)().cast(pl.Float64) for kind in ("min", "mean", "max")).alias(
                name
            )
            for name in NUMBERS[table]
        ),
    )
    refused = pl.scan_parquet(snapshot.path / "quarantine" / "quarantine.parquet").select(
        pl.col("code").value_counts(sort=True)
    )
    *by, told, codes, head = pl.collect_all([*counted, figures, refused, snapshot.scan(first).head(rows)])
    found = told.row(0, named=True)
    return {
        "prompts": found["prompt_id"],
        "scored": found["scored"],
        **{
            name: dict(sorted(((str(v[c]), v["count"]) for v in frame[c]), key=lambda v: (-v[1], v[0])))
            for name, c, frame in zip(("sources", "categories", "labels"), groups, by, strict=False)
        },
        "numbers": {name: found[name] for name in NUMBERS[table] if found[name][1] is not None},
        "refused": {line["code"]: line["count"] for line in codes["code"].to_list()},
        "rows": head.to_dicts(),
    }
