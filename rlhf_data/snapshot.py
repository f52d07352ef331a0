"""Snapshots: immutable folders of Parquet with everything that says where they come from.

<to>/refs/latest        one line, replaced atomically
<to>/<id>/data/…        train-00000-of-00001.parquet and so on
<to>/<id>/…             quarantine/ manifest.json README.md report.html spec.lock.yaml, and _SUCCESS last
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from xxhash import xxh3_64_intdigest, xxh3_128

from rlhf_data import files, ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.expectations import effective_rows, unmet

if TYPE_CHECKING:
    import datasets

ROWS_PER_FILE = 125_000
TEXT_AT_ONCE = 1 << 30  # bytes, about: of texts that are in memory together
WORKERS = 2  # files that are written at once
SPLITS = ("train", "validation", "test")
# Floats of another device may differ in their last digits: they are not part of a snapshot's identity.
SCORES = (
    "ref_logps", "ref_mismatched_logps", "ref_chosen_logps", "ref_rejected_logps",
    "n_tokens", "chosen_n_tokens", "rejected_n_tokens", "truncated",
    "ref_token_logps", "ref_chosen_token_logps", "ref_rejected_token_logps", "old_logps", "old_token_logps",
    "ref_mean_log_p2", "ref_chosen_mean_log_p2", "ref_rejected_mean_log_p2", "old_mean_log_p2",
)  # fmt: skip


TEXTS = ("prompt", "chosen", "rejected", "completion")
KEYS = {"paired": ["prompt_row", "chosen_row", "rejected_row"], "unpaired": ["completion_row"]}
KEYS_OF_TEXTS = {"paired": ["chosen_row", "rejected_row"], "unpaired": ["completion_row"]}
HASHED = 50_000  # rows that enter a content hash at once: with others every hash is another


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
        path = path / (path / "refs" / "latest").read_text(encoding="utf-8", errors="replace").strip()
    if not (path / "_SUCCESS").is_file():
        raise ValueError(f"no finished snapshot at {path}: it has no _SUCCESS; build it first")
    return path


def intact(snapshot: Path) -> bool:
    """Whether every file of a finished snapshot is there, the data as long as when they were written."""
    manifest = files.read_json(snapshot / "manifest.json")
    beside = (
        "_SUCCESS",
        "README.md",
        "report.html",
        "spec.lock.yaml",
        "contract.yaml",
        "quarantine/quarantine.parquet",
    )
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
    keep: dict[str, list[str]] | None = None,
    limit: int | None = None,
    steps: dict[str, dict[str, str]] | None = None,
) -> list[Count]:
    """Join the texts to the rows and publish them, unless the latest snapshot has the same content already.

    Args:
        inputs: "rows" (rows, perhaps score.json), "text" and "rate", which they are of, and every step, for its
            quarantine.
        out: gets snapshot.json, which names the published folder.
        to: folder of the snapshot's versions.
        name: the spec's name.
        about: what the spec says of itself.
        table: "paired" or "unpaired".
        spec_lock: the spec as it was run, as YAML.
        spec_hash: its digest.
        sources: what the manifest says of each source.
        counts: the accounting of all steps before.
        expect: what must hold, see `expectations.unmet`; it is asked before the data is written and of what was.
        keep: raw columns of each source that the rows are to have, see `_with_kept`.
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
        expect = {key: value for key, value in expect.items() if key not in ("rows", "categories")}

    def check(told: pl.DataFrame) -> None:
        failed = unmet(told, expect, refused=quarantine, counts=counts)
        if failed:
            raise ExpectationError("nothing was published:\n  " + "\n  ".join(failed))

    check(rows.rename({"prompt_row": "prompt"}))
    score_file = inputs["rows"] / "score.json"
    recipe = json.loads(score_file.read_text()) if score_file.is_file() else None
    rows, known = rows.sort(KEYS[table]), texts.names(inputs["text"])
    if table == "paired":
        rows = texts.with_judgments(rows, texts.behind(inputs["rate"]))
    if keep:
        rows = _with_kept(rows, keep, inputs)
    content = content_hash(_by_content(part, known) for part in rows.iter_slices(HASHED))
    versions = Path(to)
    said = {
        "about": about,
        "quarantine_hash": content_hash(quarantine.iter_slices(HASHED)),
        "accounting": [count.as_dict() for count in counts],
        "sources": {name: {**source, "records": _records(counts, name)} for name, source in sources.items()},
    }
    with files.alone(versions):  # of two builds at once the second one finds what the first one published
        same = _latest_with(versions, content, recipe, said)
        if same is None:
            manifest = {
                "format": 1,
                "name": name,
                **said,
                "table": table,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "created_ns": time.time_ns(),  # which of two of one second came first
                "content_hash": content,
                "spec_hash": spec_hash,
                "parent": _latest_id(versions),
                "mix": _mix(rows, files.read_json(inputs["weigh"] / "mix.json") if "weigh" in inputs else None),
                "rows": {split: int((rows["split"] == split).sum()) for split in _splits(rows)},
                "quarantined": quarantine.height,
                "rating": files.read_json(inputs["rate"] / "rating.json") or {},
                "score": recipe,
                "limit": limit,
                "moved": _moved(versions, rows, known),
                "kept": [column for column in rows.columns if column.startswith(tables.KEPT)],
                "steps": steps or {},
                "versions": {package: version(package) for package in ("rlhf_data", "polars", "pandera")},
            }
            same = _write(versions, manifest, rows, inputs["text"], known, quarantine, spec_lock, check)
        set_latest(same)
    (out / "snapshot.json").write_text(json.dumps({"path": str(same)}))
    return []


def content_hash(parts: Iterable[pl.DataFrame]) -> str:
    """Digest of a table's data columns, in the rows' order; what stands for texts is the first half of their ids.

    Args:
        parts: the table, cut into frames of HASHED rows.
    """
    digest = xxh3_128()
    for part in parts:
        for name in part.columns:
            if name not in SCORES and name not in TEXTS:
                digest.update(name.encode())
                for held in _bytes(part[name]):
                    digest.update(held)
    return digest.hexdigest()


def _bytes(values: pl.Series) -> Iterable[bytes]:
    """A column as bytes that no other column has: lengths or nulls first, then the values one after the other."""
    if isinstance(values.dtype, pl.List):
        yield values.list.len().fill_null(-1).cast(pl.Int64).to_numpy().tobytes()
        yield from _bytes(values.explode(empty_as_null=False, keep_nulls=False))
    elif values.dtype == pl.String:
        yield values.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy().tobytes()
        yield (values.str.join("").item() or "").encode()
    else:
        yield values.is_null().to_numpy().tobytes()
        yield values.cast(pl.Int8 if values.dtype == pl.Boolean else values.dtype).fill_null(0).to_numpy().tobytes()


def set_latest(snapshot: Path) -> None:
    """Make a snapshot the latest of its versions, in one step."""
    ref = snapshot.parent / "refs" / "latest"
    files.write_text(ref, snapshot.name + "\n")


def _mix(rows: pl.DataFrame, available: dict[str, int] | None) -> dict[str, dict[str, float]]:
    """Of each source's train rows: how many, their weight, its share, the effective sample size, and how often an epoch
    of the mix passes over the source, in weight and as rows that there were before the mix was drawn.
    """
    train = rows.select("source", "weight", "split").filter(pl.col("split") == "train")
    total = float(train["weight"].sum())
    found = {}
    for (source,), part in train.group_by("source", maintain_order=True):
        weight, there = float(part["weight"].sum()), (available or {}).get(str(source), part.height)
        found[str(source)] = {
            "rows": part.height,
            "weight": weight,
            "share": weight / total if total else 0.0,
            "effective_rows": effective_rows(part["weight"]),
            "epochs": weight / (total / train.height) / there if total and there else 0.0,
        }
    return dict(sorted(found.items()))


def _with_kept(rows: pl.DataFrame, keep: dict[str, list[str]], inputs: dict[str, Path]) -> pl.DataFrame:
    """Rows with the raw columns that are kept, each the value on which all records behind a row agree that have one.

    Where they do not agree it is null: which of them came first would be a matter of the order of files.

    Args:
        rows: judgment_rows.
        keep: columns, by source.
        inputs: "text", and what each source gave as "read:SOURCE".
    """
    held = [
        texts.read_chunk(chunk, "kept").with_columns(
            pl.col("record") + pl.lit(chunk.start, pl.UInt32), source=pl.lit(source)
        )
        for source in keep
        for chunk in texts.chunks_of(inputs[f"read:{source}"])
        if "kept.parquet" in texts.facts(Path(chunk.folder))["files"]  # it holds a value
    ]
    if not held:
        held = [tables.empty("kept").with_columns(source=pl.lit(None, dtype=pl.String))]
    judged = texts.read(inputs["text"], "judgments", ["judgment_row", "source", "file", "record"])
    behind = rows.select("judgment_rows").with_row_index("_place").explode("judgment_rows", empty_as_null=False)
    record = ["source", "file", "record"]
    named = behind.select("_place", *(texts.looked_up(behind["judgment_rows"], judged, name) for name in record))
    named = named.with_columns(pl.col(pl.Categorical).cast(pl.String))
    raw = pl.concat(held)
    raw = raw.with_columns(pl.col("column").replace({name: _kept_as(name) for name in raw["column"].unique()}))
    values = named.join(raw, on=record).group_by("_place", "column").agg(pl.col("value").unique())
    agreed = values.filter(pl.col("value").list.len() == 1).explode("value", empty_as_null=False)
    places = pl.DataFrame({"_place": pl.int_range(rows.height, dtype=pl.UInt32, eager=True)})
    found = []
    for column in sorted({_kept_as(column) for columns in keep.values() for column in columns}):
        of = agreed.filter(pl.col("column") == column).select("_place", "value")
        found.append(places.join(of, on="_place", how="left", maintain_order="left")["value"].alias(column))
    return rows.with_columns(found)


def _kept_as(column: str) -> str:
    """The published name of a raw column; one that a snapshot kept already keeps its own."""
    return tables.KEPT + column.removeprefix(tables.KEPT)


def _moved(versions: Path, rows: pl.DataFrame, known: texts.Names) -> dict[str, int]:
    """How many prompts stand on another side of the split than in the latest snapshot: "train to test" → number.

    Rows that arrive move no root, but they may join two clusters of near-duplicates; so does another `test`.
    """
    try:
        before = Snapshot(versions).scan().select("prompt_id", before="split").collect()
    except (ValueError, OSError, pl.exceptions.PolarsError):  # there is none that can be read
        return {}
    now = rows.select("prompt_row", pl.col("split").cast(pl.String)).unique()
    both = now.with_columns(texts.looked_up(now["prompt_row"], known.prompts, "prompt_id")).join(before, on="prompt_id")
    moved = both.filter(pl.col("before") != pl.col("split")).unique(["prompt_row", "before"])
    counted = moved.group_by("before", "split").len().sort("before", "split")
    return {f"{old} to {new}": n for old, new, n in counted.iter_rows()}


def _records(counts: list[Count], source: str) -> int:
    return sum(count.rows_in for count in counts if count.step == f"read:{source}" and count.unit == "records")


def _by_content(rows: pl.DataFrame, known: texts.Names) -> pl.DataFrame:
    """Rows with what is the same wherever it stands in place of row numbers: parts of ids, files and records."""
    sides = ("chosen_row", "rejected_row", "completion_row", "mismatched_row")
    held = [
        texts.looked_up(rows[side], known.completions, "bits").alias(side) for side in sides if side in rows.columns
    ]
    behind, ends = texts.records_behind(rows["judgment_rows"], known)
    lineage = [texts.listed(_number(behind["file"]), ends), texts.listed(behind["record"], ends)]
    few = [rows[column] for column in tables.FEW]
    if "completion_row" in rows.columns:
        few.append(texts.looked_up(rows["completion_row"], known.completions, "model"))
    numbers = map(_number, few)
    return rows.drop("prompt_row", "judgment_rows").with_columns(*held, *numbers, *lineage)


def _number(words: pl.Series) -> pl.Series:
    """Each of a few words as a number that is the same wherever the words stand; null as 0."""
    known = words.unique().drop_nulls()
    codes, found = words.to_physical().fill_null(0).to_numpy(), known.to_physical().to_numpy()
    numbers = np.zeros(int(max(codes.max(initial=0), found.max(initial=0))) + 1, np.uint64)
    numbers[found] = [xxh3_64_intdigest(word.encode()) for word in known.cast(pl.String)]
    return pl.Series(words.name, np.where(words.is_null().to_numpy(), np.uint64(0), numbers[codes]))


def _identified(rows: pl.DataFrame, known: texts.Names, table: str) -> pl.DataFrame:
    """Rows as they are published, but for their texts: ids and lineage in place of row numbers."""
    if table == "unpaired":
        rows = rows.with_columns(texts.looked_up(rows["completion_row"], known.completions, "model"))
    named = texts.identify(rows, known).with_columns(pl.col(pl.Categorical).cast(pl.String))
    if table == "paired":
        named = named.with_columns(ids.pair_ids(named["chosen_id"], named["rejected_id"], "pair_id"))
    return named.select([column for column in tables.columns_in(named, table) if column in named.columns])


def _with_texts(rows: pl.DataFrame, known: texts.Names, table: str, held: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Rows as they are published; `held` has the texts by row number."""
    found = [texts.looked_up(rows["prompt_row"], held["prompt"], "prompt")]
    for name in ("chosen", "rejected", "completion"):
        if f"{name}_row" in rows.columns:
            found.append(texts.looked_up(rows[f"{name}_row"], held["completion"], "completion").alias(name))
    whole = _identified(rows, known, table).with_columns(found)
    return whole.select(list(tables.columns_in(whole, table)))


def _splits(rows: pl.DataFrame) -> list[str]:
    there = set(rows["split"].unique())
    return [split for split in SPLITS if split in there]


def _latest_id(versions: Path) -> str | None:
    ref = versions / "refs" / "latest"
    try:
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
    except UnicodeDecodeError:  # damaged, and about to be replaced
        return None


def _latest_with(versions: Path, content: str, recipe: dict[str, Any] | None, said: dict[str, Any]) -> Path | None:
    """The latest snapshot, if it is whole, has this content, scored by this recipe, and says the same beside it.

    What was read and what became of it is part of that: else a snapshot would tell of another build than the last.
    """
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
        and _however_cut(told) == _however_cut(json.loads(json.dumps(said)))
    )
    return latest.path if same else None


def _however_cut(told: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says beside its rows that does not depend on the pieces in which files were read.

    A text that stands in two pieces came in twice, and was merged once.
    """
    kept = {name: told.get(name) for name in ("about", "quarantine_hash", "sources")}
    counts = told.get("accounting") or []
    reasons = [[count.get(key) for key in ("step", "unit", "quarantined", "filtered")] for count in counts]
    return {**kept, "accounting": reasons}


def score_identity(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """What of a recipe changes numbers."""
    keys = (
        "model_hash",
        "dtype",
        "head_dtype",
        "backend",
        "template",
        "template_hash",
        "tokenizer_hash",
        "max_length",
        "max_prompt_length",
        "columns",
    )
    if recipe is None:
        return None
    others = {name: score_identity(one) for name, one in recipe.get("references", {}).items()}
    return {key: recipe[key] for key in keys if key in recipe} | ({"references": others} if others else {})


def _write(
    versions: Path,
    manifest: dict[str, Any],
    rows: pl.DataFrame,
    text: Path,
    known: texts.Names,
    quarantine: pl.DataFrame,
    spec_lock: str,
    check: Callable[[pl.DataFrame], None],
) -> Path:
    from rlhf_data.report import card, snapshot_page

    wanted = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{manifest['content_hash'][:12]}"
    taken = len(list(versions.glob(f"{wanted}*")))  # within one second: scored anew, or never finished
    manifest["id"] = f"{wanted}-{taken + 1}" if taken else wanted
    final, table = versions / manifest["id"], manifest["table"]
    with files.whole_folder(final) as folder:
        (folder / "data").mkdir()
        (folder / "quarantine").mkdir()
        held = _write_data(folder / "data", _parts(rows), text, known, table)
        tables.write(quarantine, folder / "quarantine" / "quarantine.parquet", "quarantine", published=True)
        held.sort(key=lambda one: one.told["path"])
        manifest["files"], thin = [one.told for one in held], pl.concat(one.thin for one in held)
        check(thin.rename({"prompt_id": "prompt"}))
        files.write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False))
        files.write_text(folder / "README.md", card(manifest))
        first = pl.concat(one.first for one in held)
        files.write_text(folder / "report.html", snapshot_page(manifest, first, quarantine, thin))
        files.write_text(folder / "spec.lock.yaml", spec_lock)
        contract = (tables.folder("schemas") / f"{table}.yaml").read_text(encoding="utf-8")
        files.write_text(folder / "contract.yaml", contract)
        (folder / "_SUCCESS").touch()
    return final


class Written(NamedTuple):
    """A data file as it lies on disk, validated.

    Attributes:
        told: what the manifest tells of it.
        thin: its rows without their texts.
        first: those of its rows, whole, that the report may show.
    """

    told: dict[str, Any]
    thin: pl.DataFrame
    first: pl.DataFrame


def _parts(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of each data file and its name: each split in as many files, of about one size, as it needs."""
    for split in _splits(rows):
        held = rows.filter(pl.col("split") == split)
        count = -(-held.height // ROWS_PER_FILE)
        for k, part in enumerate(held.iter_slices(-(-held.height // count))):
            yield f"{split}-{k:05d}-of-{count:05d}.parquet", part


def _together(parts: Iterable[tuple[str, pl.DataFrame]], row_bytes: float) -> list[list[tuple[str, pl.DataFrame]]]:
    """The files in order, about TEXT_AT_ONCE of such rows at a time, and about as many each time."""
    whole = list(parts)
    total, done = sum(rows.height for _, rows in whole), 0
    n = math.ceil(total * row_bytes / TEXT_AT_ONCE)
    times: list[list[tuple[str, pl.DataFrame]]] = [[] for _ in range(max(1, n))]
    for name, rows in whole:
        times[(2 * done + rows.height) * len(times) // (2 * total)].append((name, rows))  # where its middle stands
        done += rows.height
    return [few for few in times if few]


def _write_data(
    folder: Path, parts: Iterable[tuple[str, pl.DataFrame]], text: Path, known: texts.Names, table: str
) -> list[Written]:
    """Write the data files and read them back.

    Texts are fetched for a few files at a time, so memory does not grow with the table; not for each file or split,
    as most of a fetch is the reading of all chunks.
    """
    found: list[Written] = []
    row_bytes = texts.mean_bytes(text, "prompts") + len(KEYS_OF_TEXTS[table]) * texts.mean_bytes(text, "completions")
    with ThreadPoolExecutor(WORKERS) as pool:  # compression leaves the interpreter, and most of the time, to others
        for few in _together(parts, row_bytes):
            wanted = pl.concat(rows.select(*KEYS_OF_TEXTS[table], "prompt_row") for _, rows in few)
            held = {
                "prompt": texts.prompt_texts(text, wanted["prompt_row"]),
                "completion": texts.completion_texts(text, pl.concat(wanted[key] for key in KEYS_OF_TEXTS[table])),
            }

            def write(part: tuple[str, pl.DataFrame], held: dict[str, pl.DataFrame] = held) -> Written:
                tables.write_unchecked(_with_texts(part[1], known, table, held), folder / part[0], table)
                return _read_back(folder / part[0], table)

            found += pool.map(write, few)
    return found


def _read_back(file: Path, table: str) -> Written:
    """What lies on disk, validated."""
    from rlhf_data.report import narrow, shown_first

    rows = tables.validate(tables.scan(file, table).collect(), table, unique=False)
    told = {"path": f"data/{file.name}", "rows": rows.height, "bytes": file.stat().st_size}
    thin = narrow(rows.lazy(), table).collect()
    return Written({**told, "digest": files.digest(file)}, thin, shown_first(rows, table))
