"""The first step: raw files → chunks of prompts, completions and observations, every record accounted for."""

import json
import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rlhf_data import files as disk
from rlhf_data import sources, tables, texts
from rlhf_data.accounting import Count, summed
from rlhf_data.ids import completion_ids, content_id, prompt_ids, split_keys
from rlhf_data.sources import readers
from rlhf_data.sources.kept import kept
from rlhf_data.sources.mapping import ROLES
from rlhf_data.sources.observations import REASON
from rlhf_data.sources.parts import Part, adapted, mapped, queried
from rlhf_data.sources.readers import Raw
from rlhf_data.sources.refusals import observations, refusals
from rlhf_data.texts import Chunk
from rlhf_data.words import hint

WORKERS = 2  # pieces that are read at once; polars and Arrow leave the interpreter to each other


class Settled(NamedTuple):
    """Observations that later steps can use, and what became of everything else."""

    rows: pl.DataFrame
    refused: pl.DataFrame
    kept: pl.DataFrame
    records: Count
    observations: Count


class Job(NamedTuple):
    """What one chunk is made of: its key, the file it continues, and what reads it."""

    key: str
    file: str
    read: Callable[[], Iterable[Part]]


def ingest(
    out: Path,
    *,
    chunks: Path,
    source: str,
    files: Mapping[str, Sequence[str]],
    version: str = "",
    digests: Mapping[str, Sequence[str]] | None = None,
    stamps: Mapping[str, Sequence[str]] | None = None,
    adapter: str | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    sql: str | None = None,
    format: str | None = None,
    hf: str | None = None,
    category: str | None = None,
    keep_columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[Count]:
    """Read a source into chunks, and write into `out` which ones they are and what was refused.

    A piece of a raw file that was read before, in the same way, is not read again.

    Args:
        out: a folder.
        chunks: the folder of all chunks.
        source: the source's name in the spec.
        files: the raw files of each table; "raw" is the table of a source that has only one.
        version: of the code that reads; chunks of another version are not used.
        digests: of the files' bytes, where they are known.
        stamps: of the files, from before they were digested (see `files.stamp`): what changed since is refused.
        adapter: the adapter that reads them, or
        columns: the mapping that says which columns are what, or
        sql: the query that makes such columns; with none of the three the files have our names already.
        options: the adapter's options; for CSV and TSV also quote and separator.
        format: the files' format, where their names do not say it.
        hf: a data set for `datasets`, in place of files.
        category: the category of rows that have none of their own.
        keep_columns: raw columns of the main table whose values are kept, see `kept`.
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
    try:
        main = _main(files, adapter)
        if (hf is None) == (not any(files.values())):
            raise ValueError(
                "no files; a source needs files or a data set of `datasets`" if hf is None else f"{hf}: and files"
            )
        way = partial(_read_by, adapter, options, columns, sql)
        asked = repr((version, adapter, options, columns, sql, format, reading, category, keep_columns, limit))
        known = digests or {name: [disk.digest(Path(path)) for path in paths] for name, paths in files.items()}
        names = ROLES if adapter is None and columns is None else ()
        jobs = _jobs(
            files, known, chunks, hf, format, limit, reading, main, way, asked, whole=sql is not None, names=names
        )
        check = partial(_check_unchanged, files, stamps or {})
        made = _made(jobs, chunks, partial(_settle, source=source, keep=keep_columns or ()), source, category, check)
        check()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    texts.write_chunks(out, [chunk for chunk, _ in made])
    tables.write(_quarantine([chunk for chunk, _ in made], source), out / "quarantine.parquet", "quarantine")
    return _totals([counts for _, counts in made])


def _check_unchanged(files: Mapping[str, Sequence[str]], stamps: Mapping[str, Sequence[str]]) -> None:
    """ValueError where a file is not the one that was digested: what is read of it would bear another file's name."""
    for table, told in stamps.items():
        for path, stamp in zip(files[table], told, strict=True):
            if not Path(path).is_file() or disk.stamp(Path(path)) != stamp:
                raise ValueError(f"{path} changed while it was read: run the same command again when it is complete")


def _read_by(
    adapter: str | None,
    options: Mapping[str, Any],
    columns: Mapping[str, Any] | None,
    sql: str | None,
    loaded: Mapping[str, Iterable[Raw]],
) -> Iterable[Part]:
    if adapter is not None:
        return adapted(loaded, adapter, options)
    return mapped(loaded, columns) if sql is None else queried(loaded, sql)


def _jobs(
    files: Mapping[str, Sequence[str]],
    digests: Mapping[str, Sequence[str]],
    chunks: Path,
    hf: str | None,
    format: str | None,
    limit: int | None,
    reading: Mapping[str, Any],
    main: str,
    way: Callable[..., Iterable[Part]],
    asked: str,
    *,
    whole: bool,
    names: Sequence[str],
) -> Iterator[Job]:
    """What there is to read: each piece of each file by itself, or the tables of a relational source together.

    Where `whole`, files are not cut: a query may group, sort and compare all rows of one. `readers.pieces` has `names`.
    A file whose pieces were all read before is not opened: its pieces are listed under its digest.
    """
    if hf is not None:
        key = content_id(asked, hf, repr(digests.get("hf")))
        yield Job(key, "", lambda: way({main: iter([readers.read_dataset(hf, limit=limit)])}))
        return
    if len(files) > 1:
        mark = repr([(name, digests[name], _names(files[name])) for name in files])
        yield Job(
            content_id(asked, mark),
            "",
            lambda: way(
                {
                    name: _read_files(files[name], format, limit if name == main else None, reading)
                    for name in sorted(files, key=lambda name: name != main)
                }
            ),
        )
        return
    ((table, paths),) = files.items()
    for path, name, digest in zip(paths, _names(paths), digests[table], strict=True):
        if limit is not None or whole:  # a quick look has few records

            def quick(path: str = path, name: str = name) -> Iterable[Part]:
                return way({table: iter([readers.read(path, name=name, format=format, limit=limit, **reading)])})

            yield Job(content_id(asked, digest, name), name, quick)
            continue
        listed = chunks / ".files" / f"{content_id(asked, digest, name)}.json"
        read_before = disk.read_json(listed) or []
        if read_before and all(texts.whole(chunks / key) for key in read_before):
            yield from (Job(key, name, partial(_removed, path)) for key in read_before)
            continue
        disk.sweep(listed.parent)  # what a killed process left
        keys = []
        for piece in readers.pieces(path, name=name, format=format, digest=digest, names=names, **reading):

            def load(piece: readers.Piece = piece) -> Iterable[Part]:
                return way({table: iter([piece.load()])})

            keys.append(content_id(asked, piece.digest, name))
            yield Job(keys[-1], name, load)
        disk.write_text(listed, json.dumps(keys))


def _removed(path: str) -> Iterable[Part]:
    raise ValueError(f"what was read of {path} was removed just now, by another process: run the same command again")


def _made(
    jobs: Iterator[Job],
    chunks: Path,
    settle: Callable[[Part], Settled],
    source: str,
    category: str | None,
    check: Callable[[], None],
) -> list[tuple[Chunk, tuple[Count, Count]]]:
    """The chunk of each job, in the jobs' order, and its counts; what was made before is taken as it is."""
    done: list[tuple[str, Path]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = []
        for job in jobs:
            waiting.append((job.file, pool.submit(_make, job, chunks, settle, category, check)))
            while len(waiting) > WORKERS:  # pieces of a file are held only as they are read
                file, future = waiting.pop(0)
                done.append((file, future.result()))
        done += [(file, future.result()) for file, future in waiting]
    made, starts = [], Counter[str]()
    for file, folder in done:
        facts = texts.facts(folder)
        counts = tuple(Count(**{**count, "step": f"read:{source}"}) for count in facts["counts"])
        made.append((Chunk(str(folder), source, starts[file]), counts))
        starts[file] += facts["records"] if file else 0
    return made


def _make(
    job: Job, chunks: Path, settle: Callable[[Part], Settled], category: str | None, check: Callable[[], None]
) -> Path:
    """The folder of one chunk; made now, unless it is there. `check` raises where it was read from another file."""
    folder = chunks / job.key
    if texts.whole(folder):
        return folder
    settled = [settle(part) for part in job.read()]
    check()
    rows = pl.concat([part.rows for part in settled]).with_columns(pl.col("category").fill_null(pl.lit(category)))
    refused = pl.concat([part.refused for part in settled])
    if folder.is_dir():  # what is left of a damaged one
        shutil.rmtree(folder)
    with disk.whole_folder(folder) as out:
        _write(out, rows, refused)
        if (values := pl.concat(part.kept for part in settled)).height:
            tables.write(values, out / "kept.parquet", "kept")
        counts = _totals([(part.records, part.observations) for part in settled])
        records = sum(part.records.rows_in for part in settled)
        texts.finish(out, {"records": records, "counts": [count.as_dict() for count in counts]})
    return folder


def _main(files: Mapping[str, Sequence[str]], adapter: str | None) -> str:
    """The table whose records are observations: the first one of an adapter or of the files.

    Raises:
        ValueError: the files are of other tables than the adapter's.
    """
    known = list(sources.adapter(adapter).TABLES) if adapter else list(files) or ["raw"]
    unknown = [f"{name!r}{hint(name, known, ', ')}" for name in files if name not in known]
    missing = [name for name in known if name not in files] if files else []
    if unknown or missing:
        raise ValueError(f"{adapter} reads the tables {', '.join(known)}; given: {', '.join(files)}")
    return known[0]


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


def _settle(part: Part, source: str, keep: Sequence[str] = ()) -> Settled:
    """Refuse what no later step could use, and account for every record.

    Raises:
        ValueError: a column that is to be kept is not there.
        RuntimeError: a record is in none of rows, rejects and skipped.
    """
    read = part.read
    rows = refusals(observations(read.rows))
    refused = rows.filter(pl.col("code").is_not_null())
    good = rows.filter(pl.col("code").is_null()).drop("code", "detail")
    rejects = pl.concat([read.rejects.select(*REASON), refused.select(*REASON)])
    rejects = rejects.sort("record", maintain_order=True)  # the same wherever a file is cut
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
    values = kept(part.raws if part.whole else (), keep)  # other parts are of tables that give no observations
    return Settled(_located(good, part.raws), _refused(rejects, part.raws), values, records, judged)


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


def _located(rows: pl.DataFrame, raws: list[Raw]) -> pl.DataFrame:
    """`record` as its place in its own file, and `file`."""
    if len(raws) == 1:
        return rows.with_columns(file=pl.lit(raws[0].name))
    starts = list(accumulate((raw.height for raw in raws), initial=0))[:-1]
    named = pl.DataFrame({"file": [raw.name for raw in raws], "start": pl.Series(starts, dtype=pl.UInt32)})
    located = rows.with_row_index("_row").sort("record").join_asof(named, left_on="record", right_on="start")
    return located.sort("_row").with_columns(pl.col("record") - pl.col("start")).drop("_row", "start")


def _refused(rejects: pl.DataFrame, raws: list[Raw]) -> pl.DataFrame:
    starts = list(accumulate((raw.height for raw in raws), initial=0))
    shown = []
    for record in rejects["record"]:
        index = bisect_right(starts, record) - 1
        shown.append(raws[index].as_json(record - starts[index]))
    return _located(rejects.with_columns(row=pl.Series(shown, dtype=pl.String)), raws)


def _write(out: Path, rows: pl.DataFrame, refused: pl.DataFrame) -> None:
    """The tables of a chunk: each prompt and each completion once, in the order in which they first occur."""
    asked = rows.select(prompt_ids(rows["prompt"]), pl.col("prompt"))
    prompts = asked.unique("prompt_id", keep="first", maintain_order=True)
    prompts = prompts.with_columns(split_keys(prompts["prompt"]))
    places = prompts.select("prompt_id", prompt_row=pl.int_range(pl.len(), dtype=pl.UInt32))
    rows = rows.drop("prompt").with_columns(
        asked["prompt_id"],
        completion_ids(asked["prompt_id"], rows["completion"]),
        completion_ids(asked["prompt_id"], rows["other"]).alias("other_id"),
    )
    rows = rows.join(places, on="prompt_id", how="left", maintain_order="left")
    completions = _completions(rows)
    row_of = completions.select("completion_id", completion_row=pl.int_range(pl.len(), dtype=pl.UInt32))
    other_of = row_of.rename({"completion_id": "other_id", "completion_row": "other_row"})
    observed = rows.join(row_of, on="completion_id", how="left", maintain_order="left")
    observed = observed.join(other_of, on="other_id", how="left", maintain_order="left")
    tables.write(prompts, out / "prompts.parquet", "prompts")
    tables.write(completions, out / "completions.parquet", "completions")
    tables.write(observed.select(list(tables.columns("observed"))), out / "observed.parquet", "observed")
    tables.write(refused, out / "refused.parquet", "refused")


def _completions(rows: pl.DataFrame) -> pl.DataFrame:
    """Each completion once, as it first occurs; a model that is only named later is taken from there."""
    sides = [
        rows.select("completion_id", "completion", "model", "prompt_row", "category"),
        rows.select("other_id", "other", "other_model", "prompt_row", "category"),
    ]
    names = sides[0].columns
    stacked = sides[0].with_row_index("row")
    if rows["other_id"].null_count() < rows.height:
        other = sides[1].rename(dict(zip(sides[1].columns, names, strict=True))).with_row_index("row")
        stacked = pl.concat([stacked, other.filter(pl.col("completion_id").is_not_null())]).sort(
            "row", maintain_order=True
        )
    firsts = stacked.drop("row").unique("completion_id", keep="first", maintain_order=True)
    if firsts.height == stacked.height or firsts["model"].null_count() == 0:
        return firsts
    named = stacked.drop_nulls("model").unique("completion_id", keep="first").select("completion_id", _named="model")
    joined = firsts.join(named, on="completion_id", how="left", maintain_order="left")
    return joined.with_columns(model=pl.coalesce("model", "_named")).drop("_named")


def _quarantine(chunks: list[Chunk], source: str) -> pl.DataFrame:
    """What the chunks refused, each record by its place in its file."""
    parts = [tables.empty("quarantine")]
    for chunk in chunks:
        refused = texts.read_chunk(chunk, "refused")
        ref = pl.format("{}" + texts.SEPARATOR + "{}", "file", pl.col("record") + pl.lit(chunk.start, pl.UInt32))
        parts.append(
            refused.select(
                source=pl.lit(source),
                raw_ref=pl.concat_list(ref),
                step=pl.lit("read"),
                code="code",
                detail="detail",
                row="row",
            )
        )
    return pl.concat(parts)


def _totals(counts: list[tuple[Count, Count]]) -> list[Count]:
    return [summed([pair[k] for pair in counts]) for k in range(2)]
