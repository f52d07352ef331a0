"""Snapshots: immutable folders of Parquet with everything that says where they come from.

<to>/refs/latest        one line, replaced atomically
<to>/<id>/data/…        train-00000-of-00001.parquet and so on
<to>/<id>/…             quarantine/ manifest.json README.md report.html spec.lock.yaml, and _SUCCESS last
"""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from xxhash import xxh3_128

from rlhf_data import files, tables
from rlhf_data.accounting import Count

if TYPE_CHECKING:
    import datasets

ROWS_PER_FILE = 250_000
SPLITS = ("train", "validation", "test")
# Floats of another device may differ in their last digits: they are not part of a snapshot's identity.
SCORES = (
    "ref_logps", "ref_mismatched_logps", "ref_chosen_logps", "ref_rejected_logps",
    "n_tokens", "chosen_n_tokens", "rejected_n_tokens", "truncated",
)  # fmt: skip


TEXTS = ("prompt", "chosen", "rejected", "completion")


class ExpectationError(ValueError):
    """The rows are not what the spec expects, so nothing was published."""


class Snapshot:
    """A published snapshot, opened by its own folder or by the folder of its versions (then the latest)."""

    def __init__(self, path: Path | str) -> None:
        self.path = resolve(Path(path))
        manifest = files.read_json(self.path / "manifest.json")
        if manifest is None:
            raise ValueError(f"{self.path / 'manifest.json'} is damaged: remove the snapshot and build it again")
        self.manifest: dict[str, Any] = manifest

    @property
    def id(self) -> str:
        return self.manifest["id"]

    def files(self, split: str | None = None) -> list[Path]:
        """The Parquet files of a split, or of all."""
        return [
            self.path / file["path"]
            for file in self.manifest["files"]
            if split is None or Path(file["path"]).name.startswith(f"{split}-")
        ]

    def scan(self, split: str | None = None) -> pl.LazyFrame:
        """The rows of a split, or of all, unread.

        Raises:
            ValueError: the snapshot has no such split.
        """
        files = self.files(split)
        if not files:
            raise ValueError(f"{self.path} has no split {split!r}; it has {', '.join(self.manifest['rows'])}")
        return tables.scan(files, self.manifest["table"])

    def dataset(self, split: str | None = None) -> "datasets.Dataset | datasets.DatasetDict":
        """The rows as a `datasets.Dataset`; all splits as a DatasetDict."""
        import datasets

        return datasets.load_dataset(str(self.path), split=split)  # type: ignore[return-value]


def resolve(path: Path) -> Path:
    """The folder of a whole snapshot, from its own path or that of its versions.

    Raises:
        ValueError: there is none, or it was never finished.
    """
    if (path / "refs" / "latest").is_file():
        path = path / (path / "refs" / "latest").read_text(encoding="utf-8").strip()
    if not (path / "_SUCCESS").is_file():
        raise ValueError(f"no finished snapshot at {path}: it has no _SUCCESS; build it first")
    return path


def intact(snapshot: Path) -> bool:
    """Whether every file of a finished snapshot is there, the data as long as when they were written."""
    manifest = files.read_json(snapshot / "manifest.json")
    beside = ("_SUCCESS", "README.md", "report.html", "spec.lock.yaml", "quarantine/quarantine.parquet")
    return (
        manifest is not None
        and all((snapshot / name).is_file() for name in beside)
        and all(_length(snapshot / file["path"]) == file["bytes"] for file in manifest["files"])
    )


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def publish(
    inputs: dict[str, Path],
    out: Path,
    *,
    to: str,
    name: str,
    about: str,
    table: str,
    spec_lock: str,
    spec_hash: str,
    sources: dict[str, dict[str, Any]],
    counts: list[Count],
    expect: dict[str, Any],
    limit: int | None = None,
    steps: dict[str, dict[str, str]] | None = None,
) -> list[Count]:
    """Join the texts to the rows and publish them, unless the latest snapshot has the same content already.

    Args:
        inputs: "rows" (rows, perhaps score.json), "text" (prompts, completions), and every step, for its quarantine.
        out: gets snapshot.json, which names the published folder.
        to: folder of the snapshot's versions.
        name: the spec's name.
        about: what the spec says of itself.
        table: "paired" or "unpaired".
        spec_lock: the spec as it was run, as YAML.
        spec_hash: its digest.
        sources: what the manifest says of each source.
        counts: the accounting of all steps before.
        expect: what must hold: rows [fewest, most], quarantine_rate.
        limit: records per source, where this is a quick look.
        steps: fingerprint and code of each step before, by its name: where its tables are, as long as they are kept.

    Raises:
        ExpectationError: something expected does not hold.
        ContractError: the table breaks its contract.
    """
    rows = tables.read(inputs["rows"] / "rows.parquet", f"{table}_rows")
    quarantine = pl.concat(
        [tables.empty("quarantine")]
        + [
            tables.read(p, "quarantine")
            for f in dict.fromkeys(inputs.values())
            if (p := f / "quarantine.parquet").is_file()
        ]
    )
    if limit is not None:  # a quick look has fewer rows than is expected of the whole
        expect = {key: value for key, value in expect.items() if key != "rows"}
    _expect(rows.height, quarantine, counts, expect)
    score_file = inputs["rows"] / "score.json"
    recipe = json.loads(score_file.read_text()) if score_file.is_file() else None
    whole = _with_texts(rows, inputs["text"], table)
    content = content_hash(whole)
    versions = Path(to)
    licenses = {name: source["license"] for name, source in sources.items()}
    said = {"about": about, "quarantine_hash": content_hash(quarantine)}
    same = _latest_with(versions, content, recipe, said, licenses)
    if same is None:
        manifest = {
            "format": 1,
            "name": name,
            **said,
            "table": table,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "content_hash": content,
            "spec_hash": spec_hash,
            "parent": _latest_id(versions),
            "rows": {split: rows.filter(pl.col("split") == split).height for split in _splits(rows)},
            "quarantined": quarantine.height,
            "accounting": [count.as_dict() for count in counts],
            "sources": {name: {**source, "records": _records(counts, name)} for name, source in sources.items()},
            "score": recipe,
            "limit": limit,
            "steps": steps or {},
            "versions": {package: version(package) for package in ("rlhf_data", "polars", "pandera")},
        }
        same = _write(versions, manifest, whole, quarantine, spec_lock)
    set_latest(same)
    (out / "snapshot.json").write_text(json.dumps({"path": str(same)}))
    return []


def content_hash(rows: pl.DataFrame) -> str:
    """Digest of a table's data columns, in the rows' order; ids stand for texts."""
    data = rows.drop([column for column in (*SCORES, *TEXTS) if column in rows.columns])
    digest = xxh3_128()
    for part in data.iter_slices(50_000):
        for row in part.select(pl.struct(pl.all()).struct.json_encode()).to_series():
            digest.update(row.encode())
    return digest.hexdigest()


def set_latest(snapshot: Path) -> None:
    """Make a snapshot the latest of its versions, in one step."""
    ref = snapshot.parent / "refs" / "latest"
    files.write_text(ref, snapshot.name + "\n")


def _expect(rows: int, quarantine: pl.DataFrame, counts: list[Count], expect: dict[str, Any]) -> None:
    failed = []
    fewest, most = expect.get("rows") or (None, None)
    if fewest is not None and rows < fewest:
        failed.append(f"expect.rows: {rows} rows, fewer than {fewest}")
    if most is not None and rows > most:
        failed.append(f"expect.rows: {rows} rows, more than {most}")
    if not rows:
        went = Counter[str]()
        for count in counts:
            went.update(count.quarantined)
            went.update(count.filtered)
        reasons = ", ".join(f"{reason} {n}" for reason, n in went.most_common(5))
        failed.append(f"no row is left; they went to: {reasons or 'nowhere, the sources are empty'}")
    limit = expect.get("quarantine_rate")
    rate = quarantine.height / max(1, _read(counts))
    if limit is not None and rate > limit:
        codes = quarantine["code"].value_counts(sort=True).head(5)
        reasons = ", ".join(f"{code} {n}" for code, n in codes.iter_rows())
        failed.append(
            f"expect.quarantine_rate: {quarantine.height} rows are refused, {rate:.1%} of what was read, "
            f"more than {limit:.1%}: {reasons}"
        )
    if failed:
        raise ExpectationError("nothing was published:\n  " + "\n  ".join(failed))


def _read(counts: list[Count]) -> int:
    """How much was read: observations, or records where those are more."""
    entered: dict[str, int] = {}
    for count in counts:
        if count.unit in ("records", "observations"):
            entered[count.step] = max(entered.get(count.step, 0), count.rows_in)
    return sum(entered.values())


def _records(counts: list[Count], source: str) -> int:
    return sum(count.rows_in for count in counts if count.step == f"read:{source}" and count.unit == "records")


def _with_texts(rows: pl.DataFrame, text: Path, table: str) -> pl.DataFrame:
    prompts = tables.scan(text / "prompts.parquet", "prompts").select("prompt_id", "prompt")
    completions = tables.scan(text / "completions.parquet", "completions")
    joined = rows.lazy().join(prompts, on="prompt_id", maintain_order="left")
    sides = {"chosen_id": "chosen", "rejected_id": "rejected"} if table == "paired" else {"completion_id": "completion"}
    for key, name in sides.items():
        extra = ["model"] if table == "unpaired" else []
        side = completions.select(pl.col("completion_id").alias(key), pl.col("completion").alias(name), *extra)
        joined = joined.join(side, on=key, maintain_order="left")
    return joined.select(list(tables.columns(table))).collect()


def _splits(rows: pl.DataFrame) -> list[str]:
    there = set(rows["split"].unique())
    return [split for split in SPLITS if split in there]


def _latest_id(versions: Path) -> str | None:
    ref = versions / "refs" / "latest"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def _latest_with(
    versions: Path, content: str, recipe: dict[str, Any] | None, said: dict[str, Any], licenses: dict[str, str | None]
) -> Path | None:
    """The latest snapshot, if it is whole, has this content, scored by this recipe, and says the same beside it."""
    try:
        latest = Snapshot(versions)
    except (ValueError, OSError):
        return None
    if not intact(latest.path):
        return None
    told = latest.manifest
    same = (
        told["content_hash"] == content
        and score_identity(told["score"]) == score_identity(recipe)
        and said.items() <= told.items()
        and {name: source["license"] for name, source in told["sources"].items()} == licenses
    )
    return latest.path if same else None


def score_identity(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """What of a recipe changes numbers."""
    keys = (
        "model_hash",
        "dtype",
        "head_dtype",
        "template",
        "template_hash",
        "tokenizer_hash",
        "max_length",
        "max_prompt_length",
    )
    return None if recipe is None else {key: recipe[key] for key in keys if key in recipe}


def _write(
    versions: Path, manifest: dict[str, Any], rows: pl.DataFrame, quarantine: pl.DataFrame, spec_lock: str
) -> Path:
    from rlhf_data.report import card, snapshot_page

    wanted = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{manifest['content_hash'][:12]}"
    taken = len(list(versions.glob(f"{wanted}*")))  # within one second: scored anew, or never finished
    manifest["id"] = f"{wanted}-{taken + 1}" if taken else wanted
    final = versions / manifest["id"]
    with files.whole_folder(final) as folder:
        (folder / "data").mkdir()
        (folder / "quarantine").mkdir()
        for split in manifest["rows"]:
            _write_split(folder / "data", rows.filter(pl.col("split") == split), split, manifest["table"])
        tables.write(quarantine, folder / "quarantine" / "quarantine.parquet", "quarantine", published=True)
        manifest["files"] = list(_files(folder, manifest["table"]))
        files.write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False))
        files.write_text(folder / "README.md", card(manifest))
        files.write_text(folder / "report.html", snapshot_page(manifest, rows, quarantine))
        files.write_text(folder / "spec.lock.yaml", spec_lock)
        (folder / "_SUCCESS").touch()
    return final


def _write_split(folder: Path, rows: pl.DataFrame, split: str, table: str) -> None:
    parts = max(1, -(-rows.height // ROWS_PER_FILE))
    tables.write_parts(rows, [folder / f"{split}-{k:05d}-of-{parts:05d}.parquet" for k in range(parts)], table)


def _files(folder: Path, table: str) -> Iterable[dict[str, Any]]:
    """What lies in data/, read back from disk and validated again."""
    for file in sorted((folder / "data").iterdir()):
        rows = tables.validate(tables.scan(file, table), table, unique=False).height
        yield {
            "path": str(file.relative_to(folder)),
            "rows": rows,
            "bytes": file.stat().st_size,
            "digest": files.digest(file),
        }
