"""Raw files → observations, by an adapter, by mapped columns or by a query."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from rlhf_data import sources
from rlhf_data.sources import columns as declared
from rlhf_data.sources import mapping, sql
from rlhf_data.sources.cells import INFER, Table, Wanted, table
from rlhf_data.sources.observations import REASON, Read, no_rows
from rlhf_data.sources.readers import Raw

Loaded = Mapping[str, Iterable[Raw]]  # the files of each table, the main one first


class Part(NamedTuple):
    """What was made of one raw file, or of all files of the main table where tables are joined.

    Attributes:
        raws: the files; the number of a record runs on from one to the next.
        read: observations, rejects, skipped.
        whole: every record must be in `read`; otherwise only the damaged ones are.
    """

    raws: list[Raw]
    read: Read
    whole: bool = True


def adapted(loaded: Loaded, name: str, options: Mapping[str, Any]) -> Iterator[Part]:
    """Files through an adapter: each by itself, or the tables of a relational one together."""
    module = sources.adapter(name)
    takes_file = "file" in inspect.signature(module.read).parameters
    if len(module.TABLES) > 1:
        joined = {t: _joined(raws, lambda _, t=t: module.TABLES[t]) for t, raws in loaded.items()}
        read = module.read(**{t: part.frame for t, (_, part) in joined.items()}, **options)
        yield from _relational(joined, read)
        return
    ((only, wanted),) = module.TABLES.items()
    for raw in loaded[only]:
        asked = table(raw, wanted)
        read = module.read(asked.frame, **({"file": raw.name} if takes_file else {}), **options)
        yield Part([raw], _also(read, asked.rejects))


def mapped(loaded: Loaded, columns: Mapping[str, Any] | None) -> Iterator[Part]:
    """Files through a mapping of their columns; with none, columns that have our names already.

    Raises:
        ValueError: several tables, or something wrong with the mapping.
    """
    if len(loaded) > 1:
        raise ValueError(f"columns map one table, not {', '.join(loaded)}; join them with `sql:`")
    for raws in loaded.values():
        for raw in raws:
            names = raw.columns() if raw.known is None else raw.known
            if not names and raw.height == len(raw.broken):  # an empty file, or one of broken records alone
                yield Part([raw], Read(no_rows(), table(raw, {}).rejects))
                continue
            given = _sound(mapping.identity(names) if columns is None else columns, raw)
            asked = table(raw, mapping.wanted(given))
            yield Part([raw], _also(declared.read(asked.frame, columns=given), asked.rejects))


def queried(loaded: Loaded, statement: str) -> Iterator[Part]:
    """Files through a query: each file of a single table by itself, several tables together.

    A query that keeps `record` accounts for each record. The rows of one that does not (grouped, say) are records of
    their own, called FILE?sql#N; of the raw records only their number less the number of rows is reported.
    """
    used = partial(_used, statement)
    if len(loaded) > 1:
        yield from _query_result({name: _joined(raws, used) for name, raws in loaded.items()}, statement)
        return
    ((name, raws),) = loaded.items()
    for raw in raws:
        yield from _query_result({name: _joined([raw], used)}, statement)


def _query_result(joined: dict[str, tuple[list[Raw], Table]], statement: str) -> Iterator[Part]:
    result = sql.query({name: part.frame for name, (_, part) in joined.items()}, statement)
    raws, main = next(iter(joined.values()))
    traced = "record" in result.columns
    name = f"{raws[0].name}?sql"
    if traced:
        found = result["record"].cast(pl.UInt32, strict=False)
        if not found.is_in(main.frame["record"].implode()).fill_null(False).all():
            raise ValueError(f"sql: `record` must be the record of the table {next(iter(joined))}")
        result = result.with_columns(found).sort("record", maintain_order=True)
    else:
        result = result.with_row_index("record")
    view = Raw(name, result.drop("record"), {})
    given = _sound(mapping.identity(view.columns()), view)
    asked = table(view, mapping.wanted(given))
    numbers = result.select("record").with_row_index("row")
    read = declared.read(_renumbered(asked.frame, numbers), columns=given)
    read = _also(read, _renumbered(asked.rejects, numbers))
    if traced:
        unused = main.frame.join(result, on="record", how="anti", maintain_order="left")
        yield from _relational(joined, read._replace(skipped=pl.concat([read.skipped, _filtered(unused)])))
        return
    yield Part([view], read)
    yield Part(raws, Read(no_rows(), main.rejects, _filtered(main.frame.slice(result.height))), whole=False)
    yield from list(_relational(joined, read))[1:]


def _relational(joined: dict[str, tuple[list[Raw], Table]], read: Read) -> Iterator[Part]:
    """The main table's part, then what is damaged in each of the others."""
    for index, (raws, part) in enumerate(joined.values()):
        yield Part(raws, Read(no_rows(), part.rejects), whole=False) if index else Part(raws, _also(read, part.rejects))


def _joined(raws: Iterable[Raw], wanted: Callable[[Raw], Mapping[str, Wanted]]) -> tuple[list[Raw], Table]:
    """The files of one table one below the other, records numbered through."""
    kept, parts, start = list(raws), [], 0
    for raw in kept:
        asked = table(raw, wanted(raw))
        parts.append([frame.with_columns(pl.col("record") + pl.lit(start, pl.UInt32)) for frame in asked])
        start += raw.height
    return kept, Table(*(pl.concat([part[k] for part in parts], how="diagonal_relaxed") for k in range(2)))


def _used(statement: str, raw: Raw) -> dict[str, Wanted]:
    """The columns of a file that a query could use: only for those a cell of a wrong type matters."""
    return {name: INFER for name in raw.columns() if sql.mentions(statement, name)}


def _sound(columns: Mapping[str, Any], raw: Raw) -> Mapping[str, Any]:
    wrong = mapping.problems(columns)
    if wrong:
        told = "; ".join(message for _, message in wrong)
        raise ValueError(f"{raw.name}: {told}; its columns are {', '.join(raw.columns())}")
    return columns


def _also(read: Read, rejects: pl.DataFrame) -> Read:
    return read._replace(rejects=pl.concat([rejects, read.rejects.select(*REASON)]))


def _filtered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("record", code=pl.lit("sql"), detail=pl.lit(None, dtype=pl.String))


def _renumbered(frame: pl.DataFrame, numbers: pl.DataFrame) -> pl.DataFrame:
    """`record` as the number of a raw record, where it is the number of a row of the query's result."""
    joined = frame.rename({"record": "row"}).join(numbers, on="row", how="left", maintain_order="left")
    return joined.select(pl.col("record").cast(pl.UInt32), pl.exclude("record", "row"))
