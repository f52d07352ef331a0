"""Texts stay in the chunks in which they were read; every other table names them by row number.

A chunk is a folder of the workspace, named by the content it was made from: prompts, completions, observed and refused
of one piece of a raw file, and kept where the spec keeps raw columns. The three tables of a *text folder* (prompts,
completions, judgments by row number, and chunks.json, the chunks they point into) are what the data steps hand on;
nothing but ids and numbers is in them.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from xxhash import xxh3_128_hexdigest

from rlhf_data import files, tables

INDEXES = {"prompts": "prompt_index", "completions": "completion_index", "judgments": "judgments"}
READERS = 2  # chunks that are read at once
SEPARATOR = "#"  # between the file and the record of a raw_ref
# The two answers of a pair, whichever was chosen.
UNORDERED = {
    "_first": pl.min_horizontal("chosen_row", "rejected_row"),
    "_second": pl.max_horizontal("chosen_row", "rejected_row"),
}
_REF = pl.format("{}" + SEPARATOR + "{}", pl.col("file").cast(pl.String), "record")


class Chunk(NamedTuple):
    """One chunk of a source.

    Attributes:
        folder: where it lies.
        source: the source's name.
        start: how many records of its file come before it.
    """

    folder: str
    source: str
    start: int

    def path(self, part: str) -> Path:
        return Path(self.folder) / f"{part}.parquet"


def whole(folder: Path) -> bool:
    """Whether a chunk is there, each of its files as long as it was written."""
    told = files.read_json(folder / "_SUCCESS")
    return _undamaged(told) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, (size, _) in told["files"].items()
    )


def finish(folder: Path, facts: dict[str, Any]) -> None:
    """Mark a chunk as whole; `facts` is what else is known of it."""
    written = {path.name: (path.stat().st_size, files.digest(path)) for path in sorted(folder.glob("*.parquet"))}
    told = {**facts, "files": written}
    (folder / "_SUCCESS").write_text(json.dumps({**told, "digest": _digest(told)}))


def _undamaged(told: Any) -> bool:
    """Whether what a chunk says of itself is what `finish` wrote."""
    return isinstance(told, dict) and told.pop("digest", None) == _digest(told)


def _digest(told: dict[str, Any]) -> str:
    return xxh3_128_hexdigest(json.dumps(told).encode())


def facts(folder: Path) -> dict[str, Any]:
    """What `finish` was told."""
    return json.loads((folder / "_SUCCESS").read_text())


def read_chunk(chunk: Chunk, part: str, columns: list[str] | None = None) -> pl.DataFrame:
    """One table of a chunk, its bytes as they were written.

    Raises:
        ValueError: the file is not there or damaged.
    """
    path = chunk.path(part)
    told = files.read_json(Path(chunk.folder) / "_SUCCESS") or {"files": {}}
    if not path.is_file() or [path.stat().st_size, files.digest(path)] != told["files"].get(path.name):
        raise ValueError(_damaged(chunk, part))
    return tables.read(path, part, columns)


def _damaged(chunk: Chunk, part: str) -> str:
    return f"{chunk.path(part)} is damaged: remove {chunk.folder} and run again"


def read_chunks(chunks: Iterable[Chunk], part: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """One table of each chunk, in their order; a chunk alone is too small to be decoded on several cores.

    Raises:
        ValueError: see `read_chunk`.
    """
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda chunk: read_chunk(chunk, part, columns), chunks)


def write_chunks(folder: Path, chunks: list[Chunk]) -> None:
    (folder / "chunks.json").write_text(json.dumps(chunks))


def chunks_of(folder: Path) -> list[Chunk]:
    """The chunks of a text folder, or of what a source gave."""
    return [Chunk(*chunk) for chunk in json.loads((folder / "chunks.json").read_text())]


def missing_chunks(folder: Path) -> list[str]:
    """The chunks that a folder names and that are not there any more."""
    if not (folder / "chunks.json").is_file():
        return []
    return [chunk.folder for chunk in chunks_of(folder) if not whole(Path(chunk.folder))]


def read(folder: Path, name: str, columns: list[str] | None = None, where: pl.Expr | bool = True) -> pl.DataFrame:
    """One of the three tables of a text folder: prompts, completions, judgments; see `tables.read`."""
    return tables.read(folder / f"{name}.parquet", INDEXES[name], columns, where)


def write(folder: Path, chunks: list[Chunk], **held: pl.DataFrame) -> None:
    """Write a text folder.

    Args:
        folder: exists.
        chunks: what its rows point into.
        held: prompts, completions and judgments.
    """
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: tables.write(held[name], folder / f"{name}.parquet", INDEXES[name]), INDEXES))
    write_chunks(folder, chunks)


def completions_by_chunk(folder: Path, prompts: bool = True) -> Iterator[pl.DataFrame]:
    """The completions of a text folder with their texts, chunk by chunk.

    Args:
        folder: a text folder.
        prompts: add the prompts' messages too.

    Yields:
        the columns of completions without chunk and place, and `completion`, `prompt`.
    """
    index = read(folder, "completions")
    for number, chunk in enumerate(chunks_of(folder)):
        here = index.filter(pl.col("chunk") == number)
        if not here.height:
            continue
        texts = read_chunk(chunk, "completions", ["prompt_row", "completion"])[here["place"]]
        here = here.drop("chunk", "place").with_columns(texts["completion"])
        if prompts:
            here = here.with_columns(read_chunk(chunk, "prompts", ["prompt"])["prompt"].gather(texts["prompt_row"]))
        yield here


def prompts_by_chunk(folder: Path) -> Iterator[pl.DataFrame]:
    """The prompts of a text folder with their messages, chunk by chunk: prompt_row, prompt_id, split_key, prompt."""
    index = read(folder, "prompts")
    for number, chunk in enumerate(chunks_of(folder)):
        here = index.filter(pl.col("chunk") == number)
        if here.height:
            texts = read_chunk(chunk, "prompts", ["prompt"])["prompt"].gather(here["place"])
            yield here.drop("chunk", "place").with_columns(texts)


def completion_texts(folder: Path, wanted: pl.Series) -> pl.DataFrame:
    """completion_row, completion of the rows asked for, sorted by row number, each once."""
    return _gathered(folder, "completions", "completion_row", "completion", wanted)


def prompt_texts(folder: Path, wanted: pl.Series) -> pl.DataFrame:
    """prompt_row, prompt of the rows asked for, sorted by row number, each once."""
    return _gathered(folder, "prompts", "prompt_row", "prompt", wanted)


def mean_bytes(folder: Path, table: str) -> float:
    """About what a row of the chunks' prompts or completions takes in memory.

    Raises:
        ValueError: a chunk is not there or damaged.
    """
    import pyarrow.parquet as pq

    held = []
    for chunk in chunks_of(folder):
        try:
            held.append(pq.read_metadata(chunk.path(table)))
        except (OSError, ValueError):  # what pyarrow raises is one or the other
            raise ValueError(_damaged(chunk, table)) from None
    size = sum(told.row_group(k).total_byte_size for told in held for k in range(told.num_row_groups))
    return size / max(1, sum(told.num_rows for told in held))


def _gathered(folder: Path, table: str, key: str, text: str, wanted: pl.Series) -> pl.DataFrame:
    asked = wanted.drop_nulls().unique()
    index = read(folder, table, [key, "chunk", "place"]).filter(pl.col(key).is_in(asked.implode()))
    chunks = chunks_of(folder)

    def fetched(one: tuple[tuple[int], pl.DataFrame]) -> pl.DataFrame:
        (number,), here = one
        return here.select(key).with_columns(read_chunk(chunks[number], table, [text])[text].gather(here["place"]))

    parts = [pl.DataFrame(schema={key: pl.UInt32, text: tables.columns(table)[text]})]
    with ThreadPoolExecutor(READERS) as pool:  # not `read_chunks`: of a chunk's texts only those asked for are kept
        parts += pool.map(fetched, index.group_by("chunk", maintain_order=True))  # type: ignore[arg-type]
    return pl.concat(parts).sort(key)


class Names(NamedTuple):
    """What the rows of a text folder are called when they are published.

    Attributes:
        prompts: prompt_row, prompt_id.
        completions: completion_row, completion_id, bits, model.
        judgments: judgment_row, and where its record stands in `records` (`at`).
        records: file, record, in this order, each once.
    """

    prompts: pl.DataFrame
    completions: pl.DataFrame
    judgments: pl.DataFrame
    records: pl.DataFrame


def names(folder: Path) -> Names:
    """The names of a text folder."""
    return Names(
        read(folder, "prompts", ["prompt_row", "prompt_id"]),
        read(folder, "completions", ["completion_row", "completion_id", "bits", "model"]),
        *_records(read(folder, "judgments", ["judgment_row", "file", "record"])),
    )


def _records(judgments: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The last two of `Names`, of judgments with their file and record."""
    words = judgments["file"].unique().cast(pl.String).sort()
    file = judgments["file"].cast(pl.Enum(words)).to_physical().to_numpy().astype(np.uint64)
    key = file << np.uint64(32) | judgments["record"].to_numpy()
    order = key.argsort(kind="stable")  # quick where they are in order already
    new = _differ(key[order])
    at = np.empty(len(key), np.uint32)
    at[order] = new.cumsum() - 1
    records = judgments.select("file", "record")[order[new]]
    return judgments.select("judgment_row", at=pl.Series(at)), records


def _differ(values: np.ndarray) -> np.ndarray:
    """Whether each of sorted numbers is another than the one before it."""
    return np.diff(values, prepend=~values[:1]) != 0


def records_behind(lists: pl.Series, named: Names) -> tuple[pl.DataFrame, np.ndarray]:
    """The records behind lists of judgments, in order of file and record, each once in a list.

    Returns:
        file, record, list after list; and where each list ends in them.
    """
    of_list = np.repeat(np.arange(len(lists), dtype=np.uint64), lists.list.len().to_numpy())
    rows = lists.explode(empty_as_null=False, keep_nulls=False)
    key = np.sort(of_list << np.uint64(32) | looked_up(rows, named.judgments, "at").to_numpy())
    key = key[_differ(key)]  # `np.unique` hashes, which takes thirty times as long
    ends = np.bincount((key >> np.uint64(32)).astype(np.intp), minlength=len(lists)).cumsum()
    return named.records[(key & np.uint64(2**32 - 1)).astype(np.uint32)], ends


def listed(values: pl.Series, ends: np.ndarray) -> pl.Series:
    """Values, one list after the other, as lists that end there."""
    import pyarrow as pa

    offsets = pa.array(np.concatenate([np.zeros(1, np.int64), ends]))
    return pl.Series(values.name, pa.LargeListArray.from_arrays(offsets, values.to_arrow()))


def identify(rows: pl.DataFrame, named: Names) -> pl.DataFrame:
    """`rows` with ids in place of row numbers, and `raw_ref` in place of `judgment_rows`.

    Args:
        rows: any of prompt_row, completion_row, other_row, chosen_row, rejected_row, mismatched_row, judgment_rows,
            judgment_row (or file and record, of judgments themselves).
        named: the names of the text folder that they are of.
    """
    for column in rows.columns:
        if column == "prompt_row":
            rows = rows.with_columns(looked_up(rows[column], named.prompts, "prompt_id")).drop(column)
        elif column.endswith("_row") and column != "judgment_row":
            found = looked_up(rows[column], named.completions, "completion_id")
            rows = rows.with_columns(found.alias(column.removesuffix("_row") + "_id")).drop(column)
    if "judgment_rows" in rows.columns:
        records, ends = records_behind(rows["judgment_rows"], named)
        refs = listed(records.select(_REF).to_series(), ends)
        rows = rows.with_columns(refs.alias("raw_ref")).drop("judgment_rows")
    if {"file", "record"} <= set(rows.columns):
        rows = rows.with_columns(raw_ref=pl.concat_list(_REF)).drop("file", "record")
    return rows.drop("judgment_row", strict=False)


class Behind(NamedTuple):
    """The judgments behind what was rated and compared.

    Attributes:
        rated: completion_row, source, judgment_rows.
        compared: chosen_row, rejected_row, source, judgment_rows.
    """

    rated: pl.DataFrame
    compared: pl.DataFrame


def behind(rate: Path) -> Behind:
    """The judgments behind what the step `rate` gave."""
    rated = tables.read(rate / "rated.parquet", "rated", ["completion_row", "source", "judgment_rows"])
    columns = ["chosen_row", "rejected_row", "source", "judgment_rows"]
    return Behind(rated, tables.read(rate / "compared.parquet", "compared", columns))


def with_judgments(pairs: pl.DataFrame, known: Behind) -> pl.DataFrame:
    """Paired rows with `judgment_rows`: those of the comparison that a pair is, or of both its rated answers.

    Args:
        pairs: chosen_row, rejected_row, source, margin (null for a comparison).
        known: what they were made from.
    """
    asked = pairs.select("chosen_row", "rejected_row", "source", "margin").with_row_index("_place")
    made = asked.filter(pl.col("margin").is_not_null())
    sides = [
        _rated_at(made.select("source", completion_row=side), known.rated) for side in ("chosen_row", "rejected_row")
    ]
    found = [made.select("_place", _both(known.rated["judgment_rows"], *sides))]
    if made.height < asked.height:
        given = asked.filter(pl.col("margin").is_null()).select("_place", "source", **UNORDERED)
        compared = known.compared.select("source", "judgment_rows", **UNORDERED)
        both = given.join(compared, on=["source", *UNORDERED], how="left")
        found.append(both.select("_place", "judgment_rows"))
    return pairs.with_columns(pl.concat(found).sort("_place")["judgment_rows"])


def _rated_at(asked: pl.DataFrame, rated: pl.DataFrame) -> pl.Series:
    """Where rated answers stand, by row number and source."""
    row = rated["completion_row"]
    if len(row) and row.is_sorted() and row.n_unique() == len(row):  # of one source, as usual
        return _places(asked["completion_row"], row)
    placed = rated.select("completion_row", "source").with_row_index("_at")
    return asked.join(placed, on=["completion_row", "source"], how="left", maintain_order="left")["_at"]


def _both(lists: pl.Series, first: pl.Series, second: pl.Series) -> pl.Series:
    """The lists at two places each, joined: a fifth of the time that polars takes to join them."""
    starts = np.concatenate([[0], lists.list.len().to_numpy().cumsum(dtype=np.int64)])
    at = np.column_stack([first.to_numpy(), second.to_numpy()]).ravel()
    sizes = starts[at + 1] - starts[at]
    ends = sizes.cumsum()
    items = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[at] - (ends - sizes), sizes)
    values = lists.explode(empty_as_null=False, keep_nulls=False)
    return listed(values.gather(items).alias(lists.name), ends[1::2])


def looked_up(numbers: pl.Series, table: pl.DataFrame, column: str) -> pl.Series:
    """A column of a table at the row numbers of its first column, which is sorted; null stays null.

    Args:
        numbers: row numbers (UInt32).
        table: its first column holds each row number once, in order.
        column: which one is wanted.
    """
    key = table.columns[0]
    if table.height and table[key][-1] != table.height - 1:  # rows were left out: the number is not the place
        numbers = _places(numbers, table[key])
    return table[column].gather(numbers)


def _places(numbers: pl.Series, known: pl.Series) -> pl.Series:
    """Where each number stands in `known`, which is sorted and not empty; null where it does not.

    By a table of all numbers there might be: row numbers are dense, but for what cleaning left out.
    """
    nowhere, least = len(known), min(known[0], int(numbers.min() or 0))  # type: ignore[call-overload]
    most = max(known[-1], int(numbers.max() or 0))  # type: ignore[call-overload]
    places = np.full(most - least + 1, nowhere, np.uint32)
    places[known.to_numpy() - least] = np.arange(nowhere, dtype=np.uint32)
    found = pl.Series("_place", places).gather(numbers - least)
    return found.to_frame().select(pl.when(pl.col("_place") < nowhere).then("_place")).to_series()
