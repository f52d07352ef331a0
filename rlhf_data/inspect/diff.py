"""What changed between two snapshots: rows by kind, and what of their manifests and locked specs says why.

Rows are matched by their content ids, range by range of prompt ids, so that memory does not grow with the table: files
are sorted by prompt, and Parquet's statistics let a range read its own row groups only. Texts are read for the examples
alone.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import files
from rlhf_data.snapshot import SCORES, TEXTS, Snapshot, score_identity

RANGE_ROWS = 200_000  # rows of one snapshot that are compared at a time
SAME_LOGPS = 1e-3  # nats: floats of another device differ by less
ID = {"paired": "pair_id", "unpaired": "completion_id"}
SIDES = ("chosen_id", "rejected_id")
# Which change of a row that stayed is of which kind; a column that is not named here is "re-described".
COLUMN_KINDS = {
    "mismatched_id": "re-paired",
    **dict.fromkeys(("rating", "reward", "reward_std", "label", "chosen_reward", "rejected_reward"), "re-rated"),
    **dict.fromkeys(("margin", "preference", "votes"), "re-rated"),
    "weight": "re-weighted",
    "split": "re-split",
    **dict.fromkeys(SCORES, "re-scored"),
    "raw_ref": "re-traced",
}
KINDS = {
    "added": "not there before",
    "removed": "no longer there",
    "re-paired": "the same prompt with another partner",
    "re-rated": "another rating, reward, margin, preference, label or number of votes",
    "re-weighted": "another weight",
    "re-split": "on another side of the split",
    "re-scored": "other reference log-probs or token counts",
    "re-described": "another source, category or model",
    "re-traced": "the same judgments from other records, or from more of them",
}
BIT = {kind: 1 << k for k, kind in enumerate(KINDS)}


def diff(before: Snapshot, after: Snapshot, *, out: Path | None = None, examples: int = 2) -> dict[str, Any]:
    """Compare two snapshots of one kind of table.

    Args:
        before: the older one.
        after: the newer one.
        out: a Parquet file for all changed rows: row_id, was_id (of a re-paired row), prompt_id, kinds, and of each
            column its value `_before` and `_after`.
        examples: rows of each kind to show, with their texts.

    Returns:
        table, before and after (id, path, created, rows by split), unchanged, kinds (rows by kind: one row may be of
        several), groups (rows by kind, source and category), files (added, removed and re-paired rows by raw file),
        splits (moves), columns (how many rows changed in each, and by how much), why (see `reasons`), examples.

    Raises:
        ValueError: one is paired and the other unpaired.
    """
    tables = [snapshot.manifest["table"] for snapshot in (before, after)]
    if tables[0] != tables[1]:
        raise ValueError(f"{before.path} is {tables[0]} and {after.path} is {tables[1]}: their rows have no common id")
    table = tables[0]
    with tempfile.TemporaryDirectory() as folder:
        parts, unchanged = _changes(before, after, table, Path(folder))
        changes = pl.scan_parquet(parts)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            with files.whole_file(out) as temporary:
                named(changes).sink_parquet(temporary, compression="zstd", compression_level=3)
        return {
            "table": table,
            "before": _named(before),
            "after": _named(after),
            "unchanged": unchanged,
            **_summary(changes),
            "why": reasons(before, after),
            "examples": _examples(parts, before, after, table, examples),
        }


def reasons(before: Snapshot, after: Snapshot) -> dict[str, list[dict[str, Any]]]:
    """What else than rows differs, each as name, before, after: spec, sources, code, score, accounting."""
    old, new = before.manifest, after.manifest
    score = [score_identity(manifest.get("score")) or {} for manifest in (old, new)]
    found = {
        "spec": _differences(_locked(before), _locked(after)),
        "sources": _differences(_raw_files(old), _raw_files(new)),
        "code": _differences(_code(old), _code(new)),
        "score": _differences(*score),
        "limit": _differences({"limit": old.get("limit")}, {"limit": new.get("limit")}),
        "accounting": _differences(_went(old), _went(new)),
    }
    return {name: lines for name, lines in found.items() if lines}


def _changes(before: Snapshot, after: Snapshot, table: str, folder: Path) -> tuple[list[Path], int]:
    """The changed rows in files of a range of prompts each, and how many rows are as they were."""
    sides = [snapshot.scan() for snapshot in (before, after)]
    schemas = [side.collect_schema() for side in sides]
    texts = [column for column in TEXTS if column in schemas[0]]
    columns = {c: t for schema in schemas for c, t in schema.items() if c not in texts}
    ready = [
        side.select(pl.col(c) if c in schema else pl.lit(None, dtype=t).alias(c) for c, t in columns.items())
        for side, schema in zip(sides, schemas, strict=True)
    ]
    most = max(sum(snapshot.manifest["rows"].values()) for snapshot in (before, after))
    parts, unchanged = [], 0
    for k, within in enumerate(_ranges(max(1, -(-most // RANGE_ROWS)))):
        old, new = (side.filter(within).collect() for side in ready)
        changed, same = compare(old, new, table)
        unchanged += same
        parts.append(folder / f"{k:05d}.parquet")
        changed.write_parquet(parts[-1], compression="lz4")
    return parts, unchanged


def _ranges(n: int) -> list[pl.Expr]:
    """Conditions that cut the rows by prompt into `n` parts; ids are hashes, so the parts are about equal."""
    edges = [f"{(k << 32) // n:08x}" for k in range(1, n)]
    prompt = pl.col("prompt_id")
    lows = [pl.lit(True), *(prompt >= edge for edge in edges)]
    highs = [*(prompt < edge for edge in edges), pl.lit(True)]
    return [low & high for low, high in zip(lows, highs, strict=True)]


def compare(old: pl.DataFrame, new: pl.DataFrame, table: str) -> tuple[pl.DataFrame, int]:
    """The changed rows of two tables without texts, and how many rows did not change.

    A removed and an added pair of one prompt that share an answer are one re-paired row: pairs of the same two answers
    are matched first, then those with the same chosen one, then those with the same rejected one.

    Args:
        old: the earlier rows.
        new: the later rows, with the same columns.
        table: "paired" or "unpaired".

    Returns:
        row_id, was_id (null unless re-paired), prompt_id, kinds (a bit for each of KINDS, see `named`), then each
        column `_before` and `_after` (null where there is no such row); sorted by prompt and row.
    """
    key = ID[table]
    values = [column for column in old.columns if column not in (key, "prompt_id")]
    both = old.rename({c: f"{c}_before" for c in values}).join(
        new.rename({c: f"{c}_after" for c in values}), on=[key, "prompt_id"], how="inner"
    )
    marked = both.with_columns(kinds=_kinds(values, both.schema))
    stayed = marked.filter(pl.col("kinds") != 0)
    removed, added = old.join(new, on=key, how="anti"), new.join(old, on=key, how="anti")
    frames = [stayed.with_columns(row_id=pl.col(key), was_id=pl.lit(None, dtype=pl.String))]
    if table == "paired":
        for match in (["_least", "_most"], ["chosen_id"], ["rejected_id"]):
            paired, removed, added = _repaired(removed, added, match, values)
            frames.append(paired)
    frames += [_one_sided(removed, values, "removed", key), _one_sided(added, values, "added", key)]
    order = ["row_id", "was_id", "prompt_id", "kinds", *(f"{c}_{side}" for c in values for side in ("before", "after"))]
    changed = pl.concat([frame.select(order) for frame in frames]).sort("prompt_id", "row_id")
    return changed, both.height - stayed.height


def named(changes: pl.LazyFrame) -> pl.LazyFrame:
    """Changed rows with the names of their kinds in place of the bits."""
    bits = changes.select(pl.col("kinds").unique()).collect().to_series()
    words = [[kind for kind in KINDS if each & BIT[kind]] for each in bits]
    names = pl.DataFrame({"kinds": bits, "_named": pl.Series(words, dtype=pl.List(pl.String))})
    return changes.join(names.lazy(), on="kinds", how="left", maintain_order="left").select(
        pl.col("_named").alias(c) if c == "kinds" else c for c in changes.collect_schema().names()
    )


def _kinds(values: list[str], schema: pl.Schema) -> pl.Expr:
    """The kinds of change of rows that are on both sides, a bit for each."""
    by_kind: dict[str, list[pl.Expr]] = {}
    for column in values:
        kind = COLUMN_KINDS.get(column, "re-described")
        by_kind.setdefault(kind, []).append(_differs(column, schema))
    flags = ((kind, pl.any_horizontal(by_kind[kind])) for kind in KINDS if kind in by_kind)
    bits = [pl.when(flag).then(_bit(kind)).otherwise(pl.lit(0, pl.UInt16)) for kind, flag in flags]
    return pl.sum_horizontal(bits).cast(pl.UInt16)


def _bit(kind: str) -> pl.Expr:
    return pl.lit(BIT[kind], dtype=pl.UInt16)


def _differs(column: str, schema: pl.Schema) -> pl.Expr:
    old, new = pl.col(f"{column}_before"), pl.col(f"{column}_after")
    if column in SCORES and schema[f"{column}_before"] == pl.Float64:
        return (old.is_null() != new.is_null()) | ((old - new).abs() > SAME_LOGPS).fill_null(False)
    return old.ne_missing(new)


def _repaired(
    removed: pl.DataFrame, added: pl.DataFrame, match: list[str], values: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Removed and added pairs that agree in `match`, each used once; then those that are left of either."""
    least, most = pl.min_horizontal("chosen_id", "rejected_id"), pl.max_horizontal("chosen_id", "rejected_id")
    on = ["prompt_id", *match, "_nth"]
    numbered = []
    for rows in (removed, added):
        keyed = rows.sort("pair_id").with_columns(_least=least, _most=most)
        numbered.append(keyed.with_columns(_nth=pl.int_range(pl.len()).over(["prompt_id", *match])))
    old = numbered[0].select(
        *(c for c in on if c not in values), *(pl.col(c) for c in match if c in values), was_id="pair_id",
        **{f"{c}_before": pl.col(c) for c in values},
    )  # fmt: skip
    new = numbered[1].select(
        *(c for c in on if c not in values), *(pl.col(c) for c in match if c in values), row_id="pair_id",
        **{f"{c}_after": pl.col(c) for c in values},
    )  # fmt: skip
    pairs = old.join(new, on=on, how="inner")
    found = pairs.with_columns(kinds=_bit("re-paired") | _kinds([c for c in values if c not in SIDES], pairs.schema))
    left = [
        rows.filter(~pl.col("pair_id").is_in(used.implode()))
        for rows, used in ((removed, found["was_id"]), (added, found["row_id"]))
    ]
    return found, left[0], left[1]


def _one_sided(rows: pl.DataFrame, values: list[str], kind: str, key: str) -> pl.DataFrame:
    here, there = ("before", "after") if kind == "removed" else ("after", "before")
    return rows.select(
        "prompt_id",
        row_id=pl.col(key),
        was_id=pl.lit(None, dtype=pl.String),
        kinds=_bit(kind),
        **{f"{c}_{here}": pl.col(c) for c in values},
        **{f"{c}_{there}": pl.lit(None, dtype=rows.schema[c]) for c in values},
    )


def _summary(changes: pl.LazyFrame) -> dict[str, Any]:
    """Counts of the changed rows: by kind, by source and category, by raw file, by move, by column."""
    by = {name: pl.coalesce(f"{name}_after", f"{name}_before") for name in ("source", "category")}
    groups = changes.select("kinds", **by).group_by("kinds", *by).agg(rows=pl.len())
    here = BIT["added"] | BIT["removed"] | BIT["re-paired"]
    in_files = (
        changes.filter(pl.col("kinds") & here != 0)
        .select(
            kinds=pl.col("kinds") & here,
            file=pl.coalesce("raw_ref_after", "raw_ref_before").list.first().str.replace(r"#\d+$", ""),
        )
        .group_by("kinds", "file")
        .agg(rows=pl.len())
    )
    moves = changes.select(before="split_before", after="split_after").drop_nulls()
    moves = moves.filter(pl.col("before") != pl.col("after")).group_by("before", "after").agg(rows=pl.len())
    grouped, filed, moved = pl.collect_all([groups, in_files, moves])
    by_kind = {kind: grouped.filter(pl.col("kinds") & BIT[kind] != 0)["rows"].sum() for kind in KINDS}
    return {
        "kinds": {kind: n for kind, n in by_kind.items() if n},
        "groups": _by_kind(grouped, ["source", "category"]),
        "files": _by_kind(filed, ["file"]),
        "splits": sorted(moved.to_dicts(), key=lambda g: (-g["rows"], g["before"], g["after"])),
        "columns": _columns(changes),
    }


def _by_kind(counted: pl.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    """Rows counted by bits, as rows by kind: the kinds in their order, the largest groups of each first."""
    found = []
    for kind in KINDS:
        of_kind = counted.filter(pl.col("kinds") & BIT[kind] != 0).group_by(by).agg(pl.col("rows").sum())
        groups = [{"kind": kind, **group} for group in of_kind.to_dicts()]
        found += sorted(groups, key=lambda g: (-g["rows"], *(g[name] or "" for name in by)))
    return found


def _columns(changes: pl.LazyFrame) -> list[dict[str, Any]]:
    """For each number of rows that stayed: in how many it changed, its mean before and after, the common factor."""
    schema = changes.collect_schema()
    numbers = [c.removesuffix("_before") for c, t in schema.items() if c.endswith("_before") and t.is_numeric()]
    stayed = changes.filter(pl.col("split_before").is_not_null() & pl.col("split_after").is_not_null())
    figures = []
    for column in numbers:
        old, new = pl.col(f"{column}_before"), pl.col(f"{column}_after")
        moved = old.ne_missing(new)
        ratio = (new / old).filter(moved & (old != 0))
        figures.append(
            pl.struct(
                rows=moved.sum(),
                mean_before=old.filter(moved).mean(),
                mean_after=new.filter(moved).mean(),
                least=ratio.min(),
                most=ratio.max(),
            ).alias(column)
        )
    found = stayed.select(figures).collect(engine="streaming").row(0, named=True) if figures else {}
    lines = []
    for column, line in found.items():
        least, most = line.pop("least"), line.pop("most")
        if line["rows"]:
            same = least is not None and abs(most - least) <= 1e-9 * abs(most)
            lines.append({"column": column, **line, "factor": most if same else None})
    return lines


def _examples(
    parts: list[Path], before: Snapshot, after: Snapshot, table: str, n: int
) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each kind, by prompt, with their texts: these lie together, so few row groups are read."""
    picked: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for part in parts:
        for kind, rows in picked.items():
            if len(rows) < n:
                of_kind = pl.scan_parquet(part).filter(pl.col("kinds") & BIT[kind] != 0)
                rows += of_kind.head(n - len(rows)).collect().to_dicts()
    texts = _texts([row for rows in picked.values() for row in rows], before, after, table)
    return {kind: [_example(row, texts) for row in rows] for kind, rows in picked.items() if rows}


def _texts(rows: list[dict[str, Any]], before: Snapshot, after: Snapshot, table: str) -> dict[str, dict[str, Any]]:
    """The texts of the rows that are named, by row id."""
    found: dict[str, dict[str, Any]] = {}
    wanted = {row["row_id"] for row in rows} | {row["was_id"] for row in rows if row["was_id"]}
    prompts = sorted({row["prompt_id"] for row in rows})
    for snapshot in (before, after):
        texts = [column for column in TEXTS if column in snapshot.scan().collect_schema()]
        near = snapshot.scan().filter(pl.col("prompt_id").is_in(prompts)) if prompts else snapshot.scan().head(0)
        for row in near.select(ID[table], *texts).collect().iter_rows(named=True):
            if row[ID[table]] in wanted:
                found[row.pop(ID[table])] = row
    return found


def _example(row: dict[str, Any], texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = [c.removesuffix("_before") for c in row if c.endswith("_before")]
    there = row["split_after"] is not None, row["split_before"] is not None
    changed = {
        name: [row[f"{name}_before"], row[f"{name}_after"]]
        for name in names
        if all(there) and row[f"{name}_before"] != row[f"{name}_after"]
    }
    said = [row.get(f"{name}_{'after' if there[0] else 'before'}") for name in ("source", "category", "split")]
    shown = {
        "row_id": row["row_id"],
        "was_id": row["was_id"],
        "prompt_id": row["prompt_id"],
        **dict(zip(("source", "category", "split"), said, strict=True)),
        "changed": changed,
        "texts": texts.get(row["row_id"], {}),
    }
    return shown | ({"texts_before": texts.get(row["was_id"], {})} if row["was_id"] else {})


def _named(snapshot: Snapshot) -> dict[str, Any]:
    told = snapshot.manifest
    return {key: told.get(key) for key in ("name", "id", "created", "rows")} | {"path": str(snapshot.path)}


def _locked(snapshot: Snapshot) -> dict[str, Any]:
    from ruamel.yaml import YAML

    lock = snapshot.path / "spec.lock.yaml"
    return _flat(YAML(typ="safe").load(lock.read_text(encoding="utf-8"))) if lock.is_file() else {}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every value of nested mappings by its dotted path; a list is one value unless it holds mappings."""
    if isinstance(node, list) and any(isinstance(each, dict) for each in node):
        node = dict(enumerate(node, start=1))
    if not isinstance(node, dict):
        return {path: node}
    return {
        name: value
        for key, below in node.items()
        for name, value in _flat(below, f"{path}.{key}" if path else str(key)).items()
    }


def _raw_files(manifest: dict[str, Any]) -> dict[str, Any]:
    """What each raw file was: its length and the beginning of its digest."""
    return {
        f"{name}/{file['name']}": f"{file['bytes']:,} bytes, {file['digest'][:12]}"
        for name, source in manifest["sources"].items()
        for file in source.get("files") or []
    }


def _code(manifest: dict[str, Any]) -> dict[str, Any]:
    steps = {f"step {name}": step["code"][:12] for name, step in (manifest.get("steps") or {}).items()}
    return {**manifest.get("versions", {}), **steps}


def _went(manifest: dict[str, Any]) -> dict[str, int]:
    """How many rows came into each step and where they went; steps may have several counts of a unit."""
    found: Counter[str] = Counter()
    for count in manifest["accounting"]:
        at = f"{count['step']} {count['unit']}"
        found[f"{at} in"] += count["rows_in"]
        found[f"{at} out"] += count["out"]
        for kind in ("merged", "quarantined", "filtered"):
            for reason, n in count[kind].items():
                found[f"{at} {kind}: {reason}"] += n
    return dict(found)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*before, *after])
    return [
        {"name": name, "before": before.get(name), "after": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    ]
