"""SQL over snapshots: rows, quarantine, manifests, and the score store, as DuckDB tables that can only be read."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rlhf_data import files
from rlhf_data.snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb

# What each snapshot has, beside `rows`; the types of the columns stand here, so that an empty table has them too.
TOLD = {
    "accounting": "step VARCHAR, unit VARCHAR, went VARCHAR, reason VARCHAR, n BIGINT",
    "sources": "source VARCHAR, adapter VARCHAR, license VARCHAR, records BIGINT, file VARCHAR, bytes BIGINT, "
    "digest VARCHAR",
    "splits": "split VARCHAR, n BIGINT",
    "models": "model VARCHAR, strength DOUBLE, std DOUBLE, battles BIGINT",
    "annotators": "source VARCHAR, annotator VARCHAR, votes BIGINT, p_right DOUBLE, p_tie DOUBLE, p_wrong DOUBLE, "
    "p_tie_on_tie DOUBLE",
    "snapshots": "name VARCHAR, id VARCHAR, path VARCHAR, about VARCHAR, created VARCHAR, kind VARCHAR, "
    "parent VARCHAR, content_hash VARCHAR, quarantined BIGINT",
}
TABLES = ("rows", "quarantine", *TOLD)
# The tables of the score store, which no snapshot owns: each key's first values, as `scoring.store` counts them.
STORED = {
    "scores": "key VARCHAR, model VARCHAR, dtype VARCHAR, logps DOUBLE, n_tokens INTEGER, mean_log_p2 DOUBLE, "
    "recipe VARCHAR",
    "score_keys": "completion_id VARCHAR, key VARCHAR, n_tokens INTEGER, truncated BOOLEAN, refused VARCHAR, "
    "encoding VARCHAR",
}
Stored = dict[str, list[tuple[Path, list[Path]]]]  # of each of those tables: folders of recipes, and their shards
T = TypeVar("T")
OUT = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}


class Answer(NamedTuple):
    """What a query gave.

    Attributes:
        columns: names.
        types: as DuckDB names them.
        rows: the rows, as many as were asked for.
        more: whether there were more.
    """

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    more: bool


def query(sql: str, snapshots: dict[str, Snapshot], *, rows: int | None = None, store: Path | None = None) -> Answer:
    """Run one query over snapshots.

    Args:
        sql: a SELECT, or another statement that only reads: FROM, WITH, DESCRIBE, SUMMARIZE, EXPLAIN. Of each
            snapshot there are `NAME.rows` (also called `NAME`) and NAME.quarantine, NAME.accounting, …: see TABLES.
            `rows`, `quarantine` and so on without a name are those of the only snapshot, or of all of them one under
            another, with a column `snapshot` in front.
        snapshots: by name.
        rows: take no more than the first; None for all.
        store: the score store's folder, perhaps empty yet, for the tables of STORED.

    Raises:
        ValueError: the query cannot be run, with DuckDB's reason and the tables there are.
    """

    def ask(connection: "duckdb.DuckDBPyConnection") -> Answer:
        _only_reads(connection, sql)
        cursor = connection.execute(sql)
        described = cursor.description or []
        found = cursor.fetchall() if rows is None else cursor.fetchmany(rows + 1)
        kept = found if rows is None else found[:rows]
        return Answer([c[0] for c in described], [str(c[1]) for c in described], kept, len(kept) < len(found))

    return _asked(ask, sql, snapshots, store)


def query_to(sql: str, snapshots: dict[str, Snapshot], out: Path, *, store: Path | None = None) -> int:
    """Run one query and write what it gives to a Parquet or CSV file, which need not fit into memory; its rows.

    In a CSV file lists and structs, such as a prompt's messages, are JSON.

    Raises:
        ValueError: as `query`; another kind of file; a query that cannot be written.
    """
    if out.suffix not in OUT:
        raise ValueError(f"{out}: write to a file that ends in {' or '.join(OUT)}")
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(connection: "duckdb.DuckDBPyConnection") -> int:
        _only_reads(connection, sql)
        asked, place = f"({sql.strip().rstrip(';')}\n)", _text(str(temporary))
        if out.suffix == ".csv":
            asked = _flat(connection, asked)
        connection.execute(f"COPY {asked} TO {place} ({OUT[out.suffix]})")
        ((written,),) = connection.fetchall()
        return written

    with files.whole_file(out) as temporary:
        return _asked(write, sql, snapshots, store, writable=temporary)


def _flat(connection: "duckdb.DuckDBPyConnection", asked: str) -> str:
    """What is asked, its lists and structs as JSON: a CSV file has one text a field."""
    described = connection.sql(f"DESCRIBE {asked}").fetchall()
    nested = [_name(name) for name, kind, *_ in described if kind.endswith("]") or kind.startswith(("STRUCT", "MAP"))]
    replaced = ", ".join(f"to_json({name}) AS {name}" for name in nested)
    return f"(SELECT * REPLACE ({replaced}) FROM {asked})" if nested else asked


def describe(snapshots: dict[str, Snapshot], *, store: Path | None = None) -> list[dict[str, Any]]:
    """Every table with its number of rows and its columns' types; where there are several snapshots, of each."""

    def tell(connection: "duckdb.DuckDBPyConnection") -> list[dict[str, Any]]:
        return [
            {
                "table": table,
                "rows": connection.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0],
                "columns": {name: kind for name, kind, *_ in connection.sql(f"DESCRIBE {table}").fetchall()},
            }
            for table in _tables(snapshots)
        ]

    return _asked(tell, " ".join(STORED), snapshots, store)


def named(snapshots: list[tuple[str | None, Snapshot]]) -> dict[str, Snapshot]:
    """Snapshots by the names that queries use: those given, else the spec's, with _2 after a name that is taken."""
    found: dict[str, Snapshot] = {}
    for given, snapshot in snapshots:
        name = given or snapshot.manifest["name"]
        if given in found:
            raise ValueError(f"two snapshots are called {given!r}: give each a name of its own")
        k = 2
        while name in found or name in (*TABLES, *STORED):
            name, k = f"{given or snapshot.manifest['name']}_{k}", k + 1
        found[name] = snapshot
    return found


def _tables(snapshots: dict[str, Snapshot]) -> list[str]:
    if not snapshots:
        return list(STORED)
    if len(snapshots) == 1:
        return [*TABLES, *STORED]
    return [*TABLES, *STORED, *(f"{_name(name)}.{table}" for name in snapshots for table in TABLES)]


def _asked(
    ask: Callable[["duckdb.DuckDBPyConnection"], T],
    sql: str,
    snapshots: dict[str, Snapshot],
    store: Path | None,
    writable: Path | None = None,
) -> T:
    """What `ask` gives of a database that has what `sql` reads; again where a compaction took a shard meanwhile."""
    import duckdb

    with _in_words(snapshots):
        while True:
            stored = _stored(sql, store)
            try:
                with _connected(snapshots, stored, writable) as connection:
                    return ask(connection)
            except duckdb.Error:
                shards = (path for folders in stored.values() for _, paths in folders for path in paths)
                if all(path.exists() for path in shards):
                    raise


def _stored(sql: str, store: Path | None) -> Stored:
    """Of each table of the score store that a query names: the folders of recipes and their shards.

    A store may have thousands of files, and what is wrong with one is no matter of a query that does not read it.
    """
    asked = [table for table in STORED if re.search(rf"\b{table}\b", sql, re.IGNORECASE)]
    if not asked:
        return {}
    from rlhf_data.scoring import shards
    from rlhf_data.scoring.store import INDEX, SCORES, recipe_folders

    kinds = {"scores": SCORES, "score_keys": INDEX}
    folders = recipe_folders(store) if store is not None else []
    return {
        table: [
            (folder, found) for folder in folders if (found := [s.path for s in shards.shards(folder, kinds[table])])
        ]
        for table in asked
    }


@contextmanager
def _connected(
    snapshots: dict[str, Snapshot], stored: Stored, writable: Path | None = None
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A database in memory that reads these snapshots' and shards' files and nothing else; `writable` is written."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="rlhf-data-query-") as spill, duckdb.connect() as connection:
        for name, snapshot in snapshots.items():
            _add(connection, name, snapshot)
        for table in TABLES:
            _add_together(connection, table, list(snapshots))
        for table, folders in stored.items():
            _add_stored(connection, table, folders)
        read = [snapshot.path for snapshot in snapshots.values()]
        read += [folder for folders in stored.values() for folder, _ in folders]
        readable = ", ".join(_text(str(path.resolve())) for path in read)
        connection.execute(f"SET temp_directory = {_text(spill)}")
        connection.execute(f"SET allowed_directories = [{readable}]")
        if writable is not None:
            connection.execute(f"SET allowed_paths = [{_text(str(writable))}]")
        connection.execute("SET enable_external_access = false")  # no other file, no network, no extension
        connection.execute("SET lock_configuration = true")
        yield connection


def _add(connection: "duckdb.DuckDBPyConnection", name: str, snapshot: Snapshot) -> None:
    schema, quarantine = _name(name), snapshot.path / "quarantine" / "quarantine.parquet"
    if absent := next((path for path in (*snapshot.files(), quarantine) if not path.is_file()), None):
        raise ValueError(f"{absent} is not there any more: remove {snapshot.path} and build it again")
    connection.execute(f"CREATE SCHEMA {schema}")
    paths = ", ".join(_text(str(path.resolve())) for path in snapshot.files())
    connection.execute(f"CREATE VIEW {schema}.rows AS SELECT * FROM read_parquet([{paths}])")
    connection.execute(f"CREATE VIEW {schema} AS SELECT * FROM {schema}.rows")
    refused = _text(str(quarantine.resolve()))
    connection.execute(f"CREATE VIEW {schema}.quarantine AS SELECT * FROM read_parquet({refused})")
    for table, rows in _told(snapshot).items():
        connection.execute(f"CREATE TABLE {schema}.{table} ({TOLD[table]})")
        if rows:
            marks = ", ".join("?" for _ in rows[0])
            connection.executemany(f"INSERT INTO {schema}.{table} VALUES ({marks})", rows)


def _add_stored(connection: "duckdb.DuckDBPyConnection", table: str, folders: list[tuple[Path, list[Path]]]) -> None:
    """A view of one table of the score store, over the shards of all recipes; an empty table where there are none.

    Several scorers may have written one key: of its values the first that is not null counts, by the shards' names.
    """
    if not folders:
        connection.execute(f"CREATE TABLE {table} ({STORED[table]})")
        return
    own, *values = ("key", "logps", "n_tokens", "mean_log_p2")
    if table == "score_keys":
        own, *values = ("completion_id", "key", "n_tokens", "truncated", "refused")
    first = ", ".join(f"arg_min({value}, filename) AS {value}" for value in values)
    parts = []
    for folder, paths in folders:
        recipe = files.read_json(folder / "recipe.json") or {}
        named = f"{_text(folder.name)} AS encoding"
        if table == "scores":
            model, dtype = (_text(str(recipe.get(key, ""))) for key in ("model_hash", "dtype"))
            named = f"{model} AS model, {dtype} AS dtype, {_text(folder.name)} AS recipe"
        listed = ", ".join(_text(str(path.resolve())) for path in paths)
        parts.append(f"SELECT {own}, {first}, {named} FROM read_parquet([{listed}], filename = true) GROUP BY {own}")
    columns = ", ".join(column.split()[0] for column in STORED[table].split(", "))
    connection.execute(f"CREATE VIEW {table} AS SELECT {columns} FROM ({' UNION ALL BY NAME '.join(parts)})")


def _add_together(connection: "duckdb.DuckDBPyConnection", table: str, names: list[str]) -> None:
    """A view of one snapshot's table, or of all of them one under another."""
    if len(names) == 1:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM {_name(names[0])}.{table}")
    elif names:
        parts = (f"SELECT {_text(name)} AS snapshot, * FROM {_name(name)}.{table}" for name in names)
        connection.execute(f"CREATE VIEW {table} AS {' UNION ALL BY NAME '.join(parts)}")


def _told(snapshot: Snapshot) -> dict[str, list[tuple[Any, ...]]]:
    """What the manifest says, as rows of the tables of TOLD."""
    manifest = snapshot.manifest
    accounting = [
        (count["step"], count["unit"], went, reason, n)
        for count in manifest["accounting"]
        for went, reasons in {"in": {None: count["rows_in"]}, "out": {None: count["out"]}, **_left(count)}.items()
        for reason, n in reasons.items()
    ]
    sources = [
        (name, s.get("adapter"), s.get("license"), s.get("records"), file["name"], file["bytes"], file["digest"])
        for name, s in manifest["sources"].items()
        for file in s.get("files") or [dict.fromkeys(("name", "bytes", "digest"))]
    ]
    told = {key: manifest.get(key) for key in ("name", "id", "about", "created", "parent", "content_hash")}
    this = (told["name"], told["id"], str(snapshot.path), told["about"], told["created"], manifest["table"])
    return {
        "accounting": accounting,
        "sources": sources,
        "splits": list(manifest["rows"].items()),
        "models": _lines(manifest, "models", "model", "strength", "std", "battles"),
        "annotators": _lines(
            manifest, "most_active", "source", "annotator", "votes", "right", "tie", "wrong", "tie_on_tie"
        ),
        "snapshots": [(*this, told["parent"], told["content_hash"], manifest.get("quarantined"))],
    }


def _lines(manifest: dict[str, Any], what: str, *columns: str) -> list[tuple[Any, ...]]:
    """What rating learned of models or annotators."""
    return [tuple(line.get(c) for c in columns) for line in (manifest.get("rating") or {}).get(what) or []]


def _left(count: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {kind: count[kind] for kind in ("merged", "quarantined", "filtered")}


def _only_reads(connection: "duckdb.DuckDBPyConnection", sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if not statements:
        raise ValueError("the query is empty; write one such as: SELECT * FROM rows LIMIT 5")
    reading = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    kinds = [statement.type for statement in statements]
    if len(kinds) > 1:
        raise ValueError(f"these are {len(kinds)} statements, and a query is one")
    if kinds[0] is duckdb.StatementType.MULTI:
        raise ValueError("PIVOT without a list of values is two statements to DuckDB: write PIVOT … ON column IN (…)")
    if kinds[0] not in reading:
        raise ValueError(
            f"{kinds[0].name} is not a query: snapshots are only read; --out FILE keeps what a query gives"
        )


@contextmanager
def _in_words(snapshots: dict[str, Snapshot]) -> Iterator[None]:
    """DuckDB's errors as one message."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = re.sub(r'\nDid you mean "pg_.*', "", str(error).strip())
        if "file system operations are disabled" in text:
            text = f"{text.splitlines()[0]}; a query reads snapshots only, which --snapshot names"
        elif isinstance(error, duckdb.CatalogException):
            text = f"{text}\ntables: {', '.join((*(TABLES if snapshots else ()), *STORED))}"
            if not snapshots:
                text += "; no snapshot was built: build one, or name it by --snapshot"
            elif len(snapshots) > 1:
                one = _name(next(iter(snapshots)))
                text += f"; the same of each snapshot, as in {one}.rows: {', '.join(snapshots)}"
        raise ValueError(text) from None


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
