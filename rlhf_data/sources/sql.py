"""A declared query: DuckDB over the raw tables, which it gets as frames and cannot read by itself."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import polars as pl

from rlhf_data.sources.mapping import ROLES, identity, problems
from rlhf_data.words import hint

_SELECT = re.compile(r"^\s*SELECT\s", re.IGNORECASE)
_BY_NUMBER = re.compile(r"\bBY\s+(ALL\b|\d)|\bSELECT\s+(DISTINCT|ALL)\b", re.IGNORECASE)


def query(tables: Mapping[str, pl.DataFrame], sql: str) -> pl.DataFrame:
    """The rows of a query, with `record` where they can be traced to records of the raw file.

    A query that does not select `record` gets the main table's added when that is plainly possible (a single SELECT,
    not grouped, that reads it directly or reads nothing else); otherwise its rows have no lineage but their own number.

    Args:
        tables: frames with `record`, by the names that the query knows them by, the main one first.
        sql: the query; its columns have the names of observations' parts.

    Raises:
        ValueError: DuckDB's message.
    """
    with _connection(tables) as connection:
        try:
            traced = _traced(connection, sql, list(tables))
            found = connection.sql(traced or sql).pl()
            # An outer join has rows that no record of the main table is behind.
            return connection.sql(sql).pl() if traced and found["record"].null_count() else found
        except duckdb.Error as error:
            raise ValueError(f"sql: {error}") from None


def check_sql(sql: str, schemas: Mapping[str, Mapping[str, pl.DataType]]) -> list[str]:
    """What is wrong with a query, found on empty tables.

    Args:
        sql: the query.
        schemas: the raw tables' columns and types.
    """
    tables = {name: pl.DataFrame(schema={"record": pl.UInt32(), **columns}) for name, columns in schemas.items()}
    with _connection(tables) as connection:
        try:
            names = connection.sql(sql).columns
        except duckdb.Error as error:
            return [str(error)]
    known = {*ROLES, "record"}
    unknown = [
        f"its column {name!r} is no part of an observation{hint(name, known, ', ')}; known: {', '.join(ROLES)}"
        for name in names
        if name not in known
    ]
    return unknown or [message for _, message in problems(identity(names))]


def mentions(sql: str, column: str) -> bool:
    """Whether a query could use a column: it names it, or takes all."""
    return "*" in sql or re.search(rf"(?<!\w){re.escape(column)}(?!\w)", sql, re.IGNORECASE) is not None


def _traced(connection: Any, sql: str, tables: list[str]) -> str | None:
    """The query with the main table's `record` selected too, if that changes nothing else."""
    names = connection.sql(sql).columns
    if "record" in names or not _SELECT.match(sql) or _BY_NUMBER.search(sql):
        return None
    ((told,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    nodes = [statement["node"] for statement in json.loads(told).get("statements", [])]
    if [node["type"] for node in nodes] != ["SELECT_NODE"]:  # of a union, one side would have it
        return None
    direct = [alias for table, alias in _read_directly(nodes[0]["from_table"]) if table.lower() == tables[0].lower()]
    if len(tables) > 1 and len(direct) != 1:
        return None
    record = '"' + direct[0].replace('"', '""') + '".record' if len(direct) == 1 else "record"
    traced = _SELECT.sub(lambda _: f"SELECT {record}, ", sql, count=1)
    try:
        return traced if connection.sql(traced).columns == ["record", *names] else None
    except duckdb.Error:
        return None


def _read_directly(relation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The tables of a FROM that are no subquery's, each with the name it has there."""
    if relation["type"] == "BASE_TABLE":
        yield relation["table_name"], relation["alias"] or relation["table_name"]
    elif relation["type"] == "JOIN":
        yield from _read_directly(relation["left"])
        yield from _read_directly(relation["right"])


def _connection(tables: Mapping[str, pl.DataFrame]) -> Any:
    # One thread, so that a join gives its rows in the same order every time; no way to files or the network.
    connection = duckdb.connect(config={"threads": 1})
    for name, frame in tables.items():
        connection.register(name, frame.to_arrow())
    connection.execute("SET enable_external_access = false")
    return connection
