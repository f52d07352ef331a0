"""Tables by key that many processes may write at once: folders of Parquet shards, each written whole or not at all.

A shard is `<kind>-<time>-<uuid>.parquet`, with any keys, or `<kind>-<time>-<uuid>-<prefix>.parquet`, with the keys that
begin with `prefix` only: what `compact` makes of many. A file never changes, and no file is removed before its rows
stand in others, so nothing needs a lock and a kill at any moment loses nothing that was published.

A key may stand in several shards, as two processes may have worked at once: each of its values is the first that is not
null, in the order of the shards' times. `compact` keeps just that.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlhf_data import files

ROWS_PER_FILE = 65_536  # of a compacted file: with 200 tokens a completion about 50 MB of log-probs
_PREFIXES_AT_ONCE = 4  # compacted files that are in memory together
_ROW_GROUP = 8_192
_AT_ONCE = 2_000_000  # keys that are in memory together while others are looked for among them
_PATIENCE = 60.0  # seconds for which a folder may change at every look
_HEX = re.compile(r"[0-9a-f]{8,}")
_T = TypeVar("_T")


class Kind(NamedTuple):
    """What shards of one kind hold.

    Attributes:
        name: with which their files begin.
        schema: their columns; the first is the key.
    """

    name: str
    schema: pa.Schema

    @property
    def key(self) -> str:
        return self.schema.names[0]


class Shard(NamedTuple):
    """A file of a folder; `prefix` is that of all its keys, empty where they may begin with anything."""

    path: Path
    prefix: str


def publish(table: pa.Table, folder: Path, kind: Kind, *, prefix: str = "", born: int | None = None) -> Path:
    """Write one shard whole.

    Args:
        table: with columns of `kind`; the others are null.
        folder: exists.
        kind: of what.
        prefix: what all keys begin with.
        born: nanoseconds since 1970, now by default: names sort by it, so "first" means the same to every reader.
    """
    name = f"{kind.name}-{time.time_ns() if born is None else born:020d}-{uuid.uuid4().hex}"
    path = folder / f"{name}{'-' * bool(prefix)}{prefix}.parquet"
    write_parquet(_conform(table, kind), path)
    return path


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a whole Parquet file or none."""
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "row_group_size": _ROW_GROUP}
    with files.whole_file(path) as beside:
        pq.write_table(table, beside, write_page_checksum=True, **options)


def shards(folder: Path, kind: Kind) -> list[Shard]:
    """The shards of a folder, oldest first."""
    named = re.compile(rf"{kind.name}-\d{{20}}-[0-9a-f]{{32}}(?:-([0-9a-f]+))?\.parquet")
    found = ((path, named.fullmatch(path.name)) for path in sorted(folder.glob(f"{kind.name}-*.parquet")))
    return [Shard(path, match[1] or "") for path, match in found if match]


def rows_in(folder: Path, kind: Kind) -> int:
    """How many rows all shards have, keys that stand in several counted as often."""
    return _again(lambda: sum(_open(shard.path).metadata.num_rows for shard in shards(folder, kind)))


def find(folder: Path, kind: Kind, keys: pa.Array | pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
    """`columns` of each key, in order; null where it has no value.

    Only shards that may hold one of the keys are opened; of these the column of keys is read, and else the parts
    (8,192 rows) with a key that is asked for.

    Raises:
        ValueError: a shard that cannot be read, by its path.
    """
    asked = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    asked = asked.cast(pa.string())
    wanted = pc.drop_null(asked).unique()
    found = _again(lambda: _look_up(shards(folder, kind), kind, wanted, columns))
    at = pc.index_in(asked, value_set=wanted, skip_nulls=True)
    return found.take(at)


def every(folder: Path, kind: Kind) -> Iterator[pa.Table]:
    """All shards' rows with all columns, a shard at a time, oldest first.

    Where the folder is compacted meanwhile, rows may come twice, but each comes.
    """
    given = set[Path]()

    def following() -> pa.Table | None:
        left = [shard.path for shard in shards(folder, kind) if shard.path not in given]
        if not left:
            return None
        read = _read(left[0], kind, kind.schema.names)
        given.add(left[0])
        return read

    while (table := _again(following)) is not None:
        yield table


def compact(folder: Path, kind: Kind) -> tuple[int, int]:
    """Join the shards of a folder into few, sorted by key, each with the keys of one prefix.

    Others may read, write and compact the folder meanwhile. Nothing is removed before all of its rows stand elsewhere.

    Returns:
        How many shards there were, and how many there are.

    Raises:
        ValueError: a shard that cannot be read, by its path; then nothing is removed.
    """
    if not folder.is_dir():
        return 0, 0
    with files.alone(folder):  # two of this machine would take the files from under each other
        return _again(lambda: _compact(folder, kind))


def _compact(folder: Path, kind: Kind) -> tuple[int, int]:
    _sweep(folder, kind)
    old = shards(folder, kind)
    rows = sum(_open(shard.path).metadata.num_rows for shard in old)
    prefixes = [""] if not rows else _prefixes(old, kind, rows)
    if {shard.prefix for shard in old} == set(prefixes) and len(old) == len(prefixes):
        return len(old), len(old)
    kept, written = set[Path](), 0
    for some in [prefixes[at : at + _PREFIXES_AT_ONCE] for at in range(0, len(prefixes), _PREFIXES_AT_ONCE)]:
        concerned = [shard for shard in old if any(_overlap(shard.prefix, prefix) for prefix in some)]
        read = [(shard, _with_prefixes(_read(shard.path, kind, kind.schema.names), kind, some)) for shard in concerned]
        for prefix in some:
            parts = [(shard, _with_prefixes(rows, kind, [prefix])) for shard, rows in read]
            filled = [(shard, rows) for shard, rows in parts if rows.num_rows]
            if not filled:
                continue
            written += 1
            if len(filled) == 1 and filled[0][0].prefix == prefix != "":  # nothing new: this file stays
                kept.add(filled[0][0].path)
                continue
            # The earliest of their times: a value that was first stays first.
            born = min(int(shard.path.name.split("-")[1]) for shard, _ in filled)
            joined = _first_values(pa.concat_tables([rows for _, rows in filled]), kind)
            publish(joined.sort_by(kind.key), folder, kind, prefix=prefix, born=born)
    for shard in old:
        if shard.path not in kept:
            shard.path.unlink(missing_ok=True)
    return len(old), written


def _prefixes(old: list[Shard], kind: Kind, rows: int) -> list[str]:
    """Prefixes that part all keys into files of about ROWS_PER_FILE; only hashes are spread evenly enough to be parted.

    The order of the alphabet is that of the keys.
    """
    digits = max(0, math.ceil(math.log(rows / ROWS_PER_FILE, 16)))
    if not digits:
        return [""]
    for shard in old:
        keys = _read(shard.path, kind, [kind.key])[kind.key]
        if not pc.all(pc.match_substring_regex(keys, f"^{_HEX.pattern}$")).as_py():
            return [""]
    return [f"{number:0{digits}x}" for number in range(16**digits)]


def _overlap(prefix: str, other: str) -> bool:
    return prefix.startswith(other) or other.startswith(prefix)


def _with_prefixes(table: pa.Table, kind: Kind, prefixes: list[str]) -> pa.Table:
    """The rows whose key begins with one of some prefixes, all of one length."""
    starts = pc.utf8_slice_codeunits(table[kind.key], 0, len(prefixes[0]))
    return table.filter(pc.is_in(starts, value_set=pa.array(prefixes))) if prefixes[0] else table


def _sweep(folder: Path, kind: Kind) -> None:
    """Remove what killed processes of this machine left half written."""
    for left in folder.glob(f".{kind.name}-*.tmp"):
        if files.abandoned(left):
            left.unlink(missing_ok=True)


def _look_up(found: list[Shard], kind: Kind, wanted: pa.Array, columns: Sequence[str]) -> pa.Table:
    """The values of each key of `wanted`, which are all different, in its order."""
    lengths = {len(shard.prefix) for shard in found}
    starts = {n: set(pc.utf8_slice_codeunits(wanted, 0, n).unique().to_pylist()) for n in lengths if n}
    concerned = [shard for shard in found if not shard.prefix or shard.prefix in starts[len(shard.prefix)]]
    schema = pa.schema([kind.schema.field(column) for column in columns])
    parts, places = [schema.empty_table()], [np.zeros(0, np.int64)]
    for some in _in_turns(concerned, kind) if len(wanted) else ():
        chunks = [chunk for _, keys in some for chunk in keys.chunks]
        at = pc.index_in(pa.chunked_array(chunks, pa.string()), value_set=wanted).combine_chunks()
        start = 0
        for path, keys in some:
            here = at.slice(start, len(keys))
            start += len(keys)
            hit = np.flatnonzero(here.is_valid().to_numpy(zero_copy_only=False))
            if len(hit):
                parts.append(_rows_of(path, kind, columns, hit))
                places.append(here.take(pa.array(hit)).to_numpy())
    return _first_of(pa.concat_tables(parts), np.concatenate(places), len(wanted))


def _in_turns(found: list[Shard], kind: Kind) -> Iterator[list[tuple[Path, pa.ChunkedArray]]]:
    """The shards with their keys, in runs of about _AT_ONCE rows."""
    turn: list[tuple[Path, pa.ChunkedArray]] = []
    rows = 0
    for shard in found:
        keys = _read(shard.path, kind, [kind.key])[kind.key]
        turn.append((shard.path, keys))
        rows += len(keys)
        if rows >= _AT_ONCE:
            yield turn
            turn, rows = [], 0
    if turn:
        yield turn


def _rows_of(path: Path, kind: Kind, columns: Sequence[str], rows: np.ndarray) -> pa.Table:
    """`columns` of the rows of a file with these numbers, which ascend; only the row groups that have them are read."""
    file = _open(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum(sizes)
    group = np.searchsorted(ends, rows, side="right")
    read = np.unique(group)
    before = np.concatenate([[0], np.cumsum(np.asarray(sizes)[read])])[np.searchsorted(read, group)]
    local = rows - (ends[group] - np.asarray(sizes)[group]) + before
    return _read_open(path, file, kind, columns, read.tolist()).take(pa.array(local))


def _first_of(rows: pa.Table, places: np.ndarray, count: int) -> pa.Table:
    """One row for each of `count` places: of each column the first value there that is not null."""
    columns = []
    for column in rows.columns:
        there = np.flatnonzero(column.is_valid().to_numpy())
        taken = np.full(count, -1, np.int64)
        taken[places[there[::-1]]] = there[::-1]  # of several for one place the last that is written stays: the first
        columns.append(column.take(pa.array(taken, mask=taken < 0)))
    return pa.table(columns, schema=rows.schema) if columns else rows


def _first_values(rows: pa.Table, kind: Kind) -> pa.Table:
    """One row for each key, with the first value of each column that is not null."""
    encoded = rows[kind.key].combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return _first_of(rows, encoded.indices.to_numpy(), len(encoded.dictionary))


def _conform(table: pa.Table, kind: Kind) -> pa.Table:
    """All columns of `kind` with their types, null where `table` has none."""
    for field in kind.schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(kind.schema.names).cast(kind.schema)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path, kind: Kind, columns: Sequence[str]) -> pa.Table:
    return _read_open(path, _open(path), kind, columns)


def _read_open(
    path: Path, file: pq.ParquetFile, kind: Kind, columns: Sequence[str], groups: list[int] | None = None
) -> pa.Table:
    wanted = pa.schema([kind.schema.field(name) for name in columns])
    try:
        table = file.read(wanted.names) if groups is None else file.read_row_groups(groups, wanted.names)
        return table.select(wanted.names).cast(wanted)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a readable part of the score store: delete it and score again ({error})")


def _again(work: Callable[[], _T]) -> _T:
    """Do it again where a file was gone: somebody has compacted the folder, and its rows stand in another."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
