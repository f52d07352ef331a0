"""The first step: raw files → prompts, completions, judgments and quarantine, every record accounted for."""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rlhf_data import sources, tables
from rlhf_data.accounting import Count, total
from rlhf_data.ids import completion_ids, prompt_ids, split_keys
from rlhf_data.sources import readers
from rlhf_data.sources.cells import did_you_mean
from rlhf_data.sources.observations import REASON
from rlhf_data.sources.parts import Part, adapted, mapped, queried
from rlhf_data.sources.readers import Raw
from rlhf_data.sources.refusals import observations, refusals


class Settled(NamedTuple):
    """Observations that later steps can use, and what became of everything else."""

    rows: pl.DataFrame
    quarantine: pl.DataFrame
    records: Count
    observations: Count


def ingest(
    out: Path,
    *,
    source: str,
    files: Mapping[str, Sequence[str]],
    adapter: str | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    sql: str | None = None,
    format: str | None = None,
    hf: str | None = None,
    category: str | None = None,
    limit: int | None = None,
) -> list[Count]:
    """Read a source and write its prompts, completions, judgments and quarantine into `out`.

    Args:
        out: a folder.
        source: the source's name in the spec.
        files: the raw files of each table; "raw" is the table of a source that has only one.
        adapter: the adapter that reads them, or
        columns: the mapping that says which columns are what, or
        sql: the query that makes such columns; with none of the three the files have our names already.
        options: the adapter's options; for CSV and TSV also quote and separator.
        format: the files' format, where their names do not say it.
        hf: a data set for `datasets`, in place of files.
        category: the category of rows that have none of their own.
        limit: read only the first records of each file of the main table.

    Returns:
        Counts of records (of further tables only those that are damaged), and of observations.

    Raises:
        ValueError: something about the files, the mapping or the options; see `readers.read` and `cells.table`.
        RuntimeError: an adapter lost a record.
    """
    if sum(way is not None for way in (adapter, columns, sql)) > 1:
        raise ValueError(f"{source}: say one of adapter, columns and sql")
    options = dict(options or {})
    wrong = sources.check_options(adapter, options)
    if wrong:
        raise ValueError(f"{source}: {'; '.join(wrong)}")
    reading = {name: options.pop(name) for name in sources.READER_OPTIONS if name in options}
    loaded = _load(files, hf, format, limit, reading, _main(files, adapter))
    if adapter:
        parts = adapted(loaded, adapter, options)
    elif sql:
        parts = queried(loaded, sql)
    else:
        parts = mapped(loaded, columns)
    settled = [_settle(part, source) for part in parts]
    _write(out, settled, source, category)
    return _totals([(part.records, part.observations) for part in settled], source)


def _main(files: Mapping[str, Sequence[str]], adapter: str | None) -> str:
    """The table whose records are observations: the first one of an adapter or of the files.

    Raises:
        ValueError: the files are of other tables than the adapter's.
    """
    known = list(sources.adapter(adapter).TABLES) if adapter else list(files) or ["raw"]
    unknown = [f"{name!r}{did_you_mean(name, known)}" for name in files if name not in known]
    missing = [name for name in known if name not in files] if files else []
    if unknown or missing:
        raise ValueError(f"{adapter} reads the tables {', '.join(known)}; given: {', '.join(files)}")
    return known[0]


def _load(
    files: Mapping[str, Sequence[str]],
    hf: str | None,
    format: str | None,
    limit: int | None,
    reading: Mapping[str, str],
    main: str,
) -> dict[str, Iterator[Raw]]:
    """The raw files of each table, the main one first, each read when its turn comes."""
    if (hf is None) == (not any(files.values())):
        raise ValueError(
            "no files; a source needs files or a data set of `datasets`" if hf is None else f"{hf}: and files"
        )
    if hf is not None:
        return {main: iter([readers.read_dataset(hf, limit=limit)])}
    return {
        name: _read_files(files[name], format, limit if name == main else None, reading)
        for name in sorted(files, key=lambda name: name != main)
    }


def _read_files(
    paths: Sequence[str], format: str | None, limit: int | None, reading: Mapping[str, str]
) -> Iterator[Raw]:
    for path, name in zip(paths, _names(paths), strict=True):
        yield readers.read(path, name=name, format=format, limit=limit, **reading)


def _names(paths: Sequence[str]) -> list[str]:
    """What the files are called in lineage: their base names, or as much more of the path as tells them apart."""
    short = [Path(path).name for path in paths]
    if len(set(short)) == len(short):
        return short
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120  (as given, not resolved)
    return [Path(os.path.relpath(path, folder)).as_posix() for path in paths]


def _settle(part: Part, source: str) -> Settled:
    """Refuse what no later step could use, and account for every record.

    Raises:
        RuntimeError: a record is in none of rows, rejects and skipped.
    """
    read = part.read
    rows = refusals(observations(read.rows))
    refused = rows.filter(pl.col("code").is_not_null())
    good = rows.filter(pl.col("code").is_null()).drop("code", "detail")
    rejects = pl.concat([read.rejects.select(*REASON), refused.select(*REASON)])
    fates = _fates(good, rejects, read.skipped)
    height = sum(raw.height for raw in part.raws)
    if part.whole and fates.height != height:
        lost = sorted(set(range(height)) - set(fates["record"]))
        names = ", ".join(raw.name for raw in part.raws)
        raise RuntimeError(f"{source}: {names}: record {lost[:5]} is in none of rows, rejects and skipped")
    step = f"read:{source}"
    records = Count(
        step, "records", fates.height, fates.filter("good").height, {}, *_by_code(fates.filter(~pl.col("good")))
    )
    partly = read.rows.select("record").unique()
    damaged = read.rejects.select("record", "code").join(partly, on="record", how="semi")
    left_out = read.skipped.select("record", "code").join(partly, on="record", how="semi")
    quarantined = Counter(damaged["code"]) + Counter(refused["code"])
    height_in = rows.height + damaged.height + left_out.height
    judged = Count(step, "observations", height_in, good.height, {}, quarantined, Counter(left_out["code"]))
    return Settled(_with_refs(good, part.raws), _quarantine(rejects, part.raws, source), records, judged)


def _fates(good: pl.DataFrame, rejects: pl.DataFrame, skipped: pl.DataFrame) -> pl.DataFrame:
    """For each record whether it gave an observation, and if not the first reason; damage comes before a skip."""
    none = pl.lit(None, dtype=pl.String)
    stacked = [
        good.select("record", code=none, good=pl.lit(True), refused=pl.lit(True)),
        rejects.select("record", "code", good=pl.lit(False), refused=pl.lit(True)),
        skipped.select("record", "code", good=pl.lit(False), refused=pl.lit(False)),
    ]
    return pl.concat(stacked).unique("record", keep="first", maintain_order=True)


def _by_code(fates: pl.DataFrame) -> tuple[Counter[str], Counter[str]]:
    """Records without an observation: quarantined by code, filtered by reason."""
    return Counter(fates.filter("refused")["code"]), Counter(fates.filter(~pl.col("refused"))["code"])


def _with_refs(rows: pl.DataFrame, raws: list[Raw]) -> pl.DataFrame:
    """`raw_ref` in place of `record`."""
    starts = list(accumulate((raw.height for raw in raws), initial=0))[:-1]
    files = pl.DataFrame({"file": [raw.name for raw in raws], "start": pl.Series(starts, dtype=pl.UInt32)})
    located = rows.with_row_index("_row").sort("record").join_asof(files, left_on="record", right_on="start")
    ref = pl.format("{}#{}", "file", pl.col("record") - pl.col("start"))
    return located.sort("_row").with_columns(raw_ref=ref).drop("_row", "record", "file", "start")


def _quarantine(rejects: pl.DataFrame, raws: list[Raw], source: str) -> pl.DataFrame:
    starts = list(accumulate((raw.height for raw in raws), initial=0))
    texts = []
    for record in rejects["record"]:
        index = bisect_right(starts, record) - 1
        texts.append(raws[index].as_json(record - starts[index]))
    return _with_refs(rejects, raws).select(
        source=pl.lit(source),
        raw_ref=pl.concat_list("raw_ref"),
        step=pl.lit("read"),
        code="code",
        detail="detail",
        row=pl.Series(texts, dtype=pl.String),
    )


def _write(out: Path, settled: list[Settled], source: str, category: str | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = pl.concat([part.rows for part in settled]).with_columns(pl.col("category").fill_null(pl.lit(category)))
    ids = prompt_ids(rows["prompt"])
    rows = rows.with_columns(ids, completion_ids(ids, rows["completion"]), source=pl.lit(source)).with_columns(
        completion_ids(ids, rows["other"]).alias("other_id")
    )
    prompts = rows.select("prompt_id", "prompt").unique("prompt_id", keep="first", maintain_order=True)
    prompts = prompts.with_columns(split_keys(prompts["prompt"]))
    tables.write(prompts, out / "prompts.parquet", "prompts")
    tables.write(_completions(rows), out / "completions.parquet", "completions")
    tables.write(rows.drop("model"), out / "judgments.parquet", "judgments")
    tables.write(pl.concat([part.quarantine for part in settled]), out / "quarantine.parquet", "quarantine")


def _completions(rows: pl.DataFrame) -> pl.DataFrame:
    """Each completion once, as it first occurs; a model that is only named later is taken from there."""
    shared = ("prompt_id", "source", "category")
    sides = [
        rows.select("completion_id", "completion", "model", *shared),
        rows.select("other_id", "other", "other_model", *shared),
    ]
    names = sides[0].columns
    stacked = pl.concat(
        side.rename(dict(zip(side.columns, names, strict=True))).with_row_index("row") for side in sides
    )
    return (
        stacked.filter(pl.col("completion_id").is_not_null())
        .sort("row", maintain_order=True)
        .group_by("completion_id", maintain_order=True)
        .agg(pl.col("prompt_id", "completion", "source", "category").first(), pl.col("model").drop_nulls().first())
    )


def _totals(counts: list[tuple[Count, Count]], source: str) -> list[Count]:
    return [_sum([pair[k] for pair in counts], unit, source) for k, unit in enumerate(("records", "observations"))]


def _sum(counts: list[Count], unit: str, source: str) -> Count:
    rows_in, out = sum(count.rows_in for count in counts), sum(count.out for count in counts)
    return Count(
        f"read:{source}", unit, rows_in, out, {}, dict(total(counts, "quarantined")), dict(total(counts, "filtered"))
    )
