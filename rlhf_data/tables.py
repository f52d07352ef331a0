"""The data tables: their contracts, and the only code that validates, reads and writes them.

A contract is a file in schemas/, in pandera's own YAML form. Three things that pandera lets pass are closed here once
for all: a misspelt key of a contract, a LazyFrame (of which pandera checks the types only), and NaN or inf (which pass
`greater_than`).
"""

import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rlhf_data import files
from rlhf_data.ahead import ahead
from rlhf_data.ids import MESSAGES

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from pandera.polars import DataFrameSchema

__all__ = [
    "ContractError", "columns", "conform", "contract", "empty", "folder", "kept_columns", "optional_columns",
    "parse_contract", "read", "scan", "validate", "write", "write_stream", "write_unchecked",
]  # fmt: skip

ROW_GROUP = 50_000
VALIDATED = 1_000_000  # rows that are validated at once: memory does not grow with the table
STREAMED = 250_000  # rows of a stream that are validated and written at once, or more
NAMES = (
    "prompts", "completions", "observed", "refused", "prompt_index", "completion_index", "judgments", "rated",
    "compared", "kept", "marks", "clusters", "splits", "unpaired", "paired", "quarantine",
)  # fmt: skip

# The narrow tables between `shape` and `publish`: the published ones with row numbers in place of ids and texts.
UINT32S = pl.List(pl.UInt32)
NARROW: dict[str, dict[str, pl.DataType]] = {
    "paired_rows": {
        "prompt_row": pl.UInt32(), "chosen_row": pl.UInt32(), "rejected_row": pl.UInt32(),
    },
    "unpaired_rows": {
        "prompt_row": pl.UInt32(), "completion_row": pl.UInt32(), "mismatched_row": pl.UInt32(),
        "judgment_rows": UINT32S,
    },
}  # fmt: skip
PUBLISHED_ONLY = {
    "prompt_id", "prompt", "pair_id", "chosen_id", "rejected_id", "chosen", "rejected", "completion_id", "completion",
    "model", "mismatched_id", "raw_ref", "^kept_.*$",
}  # fmt: skip
PUBLISHED = ("paired", "unpaired")
KEPT = "kept_"  # before the names of raw columns that are carried through: no column of ours begins so
FEW = ("source", "category", "split")  # text columns with few values: numbers inside, text when published

# The types that contracts use, as they are written there.
DTYPES: dict[str, pl.DataType] = {
    str(dtype): dtype
    for dtype in (
        pl.String(), pl.Float64(), pl.Int64(), pl.UInt32(), pl.UInt64(), pl.Boolean(), pl.Categorical(),
        pl.List(pl.String), pl.List(pl.Float32), UINT32S, MESSAGES,
    )
}  # fmt: skip


_REGISTERING = threading.Lock()


class ContractError(ValueError):
    """A table does not keep its contract; the message says which check failed, where and how often."""


def folder(name: str) -> "Traversable":
    """One of the data folders beside the package: schemas, pipelines, flows."""
    # A wheel carries them inside the package; a checkout keeps them beside it.
    installed = resources.files("rlhf_data") / name
    return installed if installed.is_dir() else Path(__file__).parents[1] / name


@cache
def contract(name: str) -> "DataFrameSchema":
    """The contract of the table `name`, from schemas/.

    Raises:
        ValueError: no such table, or the file says something that pandera did not understand.
    """
    if name in NARROW:
        return _narrow(name)
    if name not in NAMES:
        raise ValueError(f"no table named {name!r}; known tables: {', '.join(NAMES)}")
    return parse_contract((folder("schemas") / f"{name}.yaml").read_text(encoding="utf-8"), name)


def parse_contract(text: str, name: str) -> "DataFrameSchema":
    """A contract from its YAML text; whatever pandera would ignore in it is an error."""
    from pandera.io import polars_io

    with _REGISTERING:  # two threads may read their first contract at once
        _register_checks()
    where = f"schemas/{name}.yaml"
    try:
        schema = polars_io.from_yaml(text)
    except (AttributeError, TypeError, ValueError) as error:  # a check that is not registered, or lacks its bounds
        raise ValueError(f"{where}: {error}") from None
    written = _yaml().load(text)
    understood = polars_io.serialize_schema(schema, minimal=False)
    checks = written.pop("checks", {})
    taken = {
        check["options"]["check_name"]: {key: value for key, value in check.items() if key != "options"}
        for check in understood["checks"] or []
    }
    if taken != checks:
        raise ValueError(f"{where}: pandera did not take all of the checks: {checks} became {taken}")
    _refuse_ignored(written, understood, where)
    return schema


def _narrow(name: str) -> "DataFrameSchema":
    """The contract of a table of row numbers: the published table's, of the columns that are in both."""
    import copy

    from pandera.polars import Check, Column

    schema = copy.deepcopy(contract(name.removesuffix("_rows")))
    schema = schema.remove_columns([column for column in schema.columns if column in PUBLISHED_ONLY])
    for column in FEW:
        schema = schema.update_column(column, dtype=pl.Categorical(), checks=[])
    rows = {column: Column(dtype, nullable=column == "mismatched_row") for column, dtype in NARROW[name].items()}
    schema = schema.add_columns(rows)
    schema.columns = {column: schema.columns[column] for column in _written(name)}  # in the order that is written
    schema.unique = ["chosen_row", "rejected_row"] if name == "paired_rows" else ["completion_row"]
    schema.checks = [Check.columns_differ(left="chosen_row", right="rejected_row")] if name == "paired_rows" else []
    schema.name = name
    return schema


def columns(name: str) -> dict[str, pl.DataType]:
    """Names and polars types of the columns that a table always has, in the contract's order."""
    return {column: dtype for column, (dtype, always) in _written(name).items() if always}


def optional_columns(name: str) -> dict[str, pl.DataType]:
    """Names and polars types of the columns that a table has where something asks for them (`required: false`)."""
    return {column: dtype for column, (dtype, always) in _written(name).items() if not always}


def columns_in(frame: pl.DataFrame, name: str) -> dict[str, pl.DataType]:
    """The columns that a table always has and, of the others, those of `frame`, in the contract's order."""
    there = {c: dtype for c, (dtype, always) in _written(name).items() if always or c in frame.columns}
    return there | kept_columns(frame.columns, name)


def kept_columns(names: Iterable[str], name: str) -> dict[str, pl.DataType]:
    """Those of some columns that a published table has because a spec's `keep_columns` names them, and their type."""
    return {c: pl.String() for c in sorted(names) if c.startswith(KEPT)} if name in PUBLISHED else {}


@cache
def _written(name: str) -> dict[str, tuple[pl.DataType, bool]]:
    """Each column's type, and whether it is always there (pandera is slow to load: read without)."""
    table = name.removesuffix("_rows")
    written = _yaml().load((folder("schemas") / f"{table}.yaml").read_text(encoding="utf-8"))["columns"]
    plain = {column: c for column, c in written.items() if not c.get("regex")}
    found = {column: (DTYPES[c["dtype"]], c.get("required", True)) for column, c in plain.items()}
    if name not in NARROW:
        return found
    shared = {
        c: (pl.Categorical() if c in FEW else dtype, always)
        for c, (dtype, always) in found.items()
        if c not in PUBLISHED_ONLY
    }
    return {**{c: (dtype, True) for c, dtype in NARROW[name].items()}, **shared}


def empty(name: str) -> pl.DataFrame:
    return pl.DataFrame(schema=columns(name))


def conform(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """`frame` with the contract's columns in the contract's order; absent ones that may be null are null.

    Of optional columns it has those that `frame` has.

    Raises:
        ContractError: a column that may not be null is absent, or a value cannot be of its column's type.
    """
    schema, types = contract(name), columns_in(frame, name)
    absent = [c for c, column in schema.columns.items() if c not in frame.columns and not column.nullable]
    if absent:
        raise ContractError(f"{name}: no column {', '.join(absent)}; the frame has {', '.join(frame.columns)}")
    try:
        return frame.select(
            (pl.col(c).cast(t) if c in frame.columns else pl.lit(None, dtype=t)).alias(c) for c, t in types.items()
        )
    except pl.exceptions.PolarsError as error:
        raise ContractError(f"{name}: {str(error).splitlines()[0]}") from None


def validate(frame: pl.DataFrame | pl.LazyFrame, name: str, *, unique: bool = True) -> pl.DataFrame:
    """The frame itself, if it keeps the contract; values are checked, for a LazyFrame too.

    Args:
        frame: the table; a LazyFrame is collected.
        name: the table's name.
        unique: check uniqueness too; a part of a table cannot be checked for it alone.

    Raises:
        ContractError: every failed check with its column, count and first row.
    """
    from pandera.errors import SchemaErrors

    schema, alike = contract(name), contract(name).unique or []
    frame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    cases: list[pl.DataFrame] = []
    for start in range(0, max(1, frame.height), VALIDATED):
        try:
            _without_unique(name).validate(frame.slice(start, VALIDATED), lazy=True)
        except SchemaErrors as errors:
            found = errors.failure_cases.with_columns(pl.col("failure_case").cast(pl.String, strict=False))
            cases.append(found.with_columns(pl.col("index").cast(pl.Int64) + start))
    told = _told(pl.concat(cases, how="vertical_relaxed"), name) if cases else []
    if unique and not told and (again := frame.select(alike).is_duplicated()).any():
        told.append(
            f"{schema.name}: {', '.join(alike)} must be unique, but {again.sum()} rows share theirs with another, "
            f"the first is row {again.arg_max()}"
        )
    if told:
        raise ContractError("the table breaks its contract:\n  " + "\n  ".join(told))
    return frame


def write(frame: pl.DataFrame, path: Path, name: str, *, published: bool = False) -> Path:
    """Validate a table and write it, whole or not at all.

    Args:
        frame: the table; absent nullable columns are added.
        path: a .parquet file; its folder exists.
        name: whose contract it keeps.
        published: compress for keeping (zstd-2) and not for speed (zstd-1).
    """
    checked = validate(conform(frame, name), name)
    return _write(checked, path, name, published=published)


def write_unchecked(frame: pl.DataFrame, path: Path, name: str) -> None:
    """Write a part of a table for keeping, unvalidated: what is published is validated as it lies on disk."""
    _write(frame, path, name, published=True)


def write_stream(frames: Iterable[pl.DataFrame], path: Path, name: str) -> None:
    """Validate a table part by part and write it, whole or not at all, without ever holding it whole.

    Args:
        frames: the parts, in order; a row of one is never the same as a row of another.
        path: a .parquet file; its folder exists.
        name: whose contract it keeps.
    """
    import pyarrow.parquet as pq

    types = columns(name)
    # Differences of row numbers take a fifth of the bytes and of the time that the numbers take.
    numbers = {column: "DELTA_BINARY_PACKED" for column, dtype in types.items() if dtype == pl.UInt32}
    numbers |= {f"{column}.list.element": "DELTA_BINARY_PACKED" for column, dtype in types.items() if dtype == UINT32S}
    few = [column for column, dtype in types.items() if dtype not in (pl.UInt32, UINT32S)]
    with (
        files.whole_file(path) as temporary,
        pq.ParquetWriter(
            temporary,
            empty(name).to_arrow().schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=few,  # pyright: ignore[reportArgumentType]: its stub knows only the one way
            column_encoding=numbers,
        ) as writer,
    ):
        whole = _joined(conform(frame, name) for frame in frames)
        for part in ahead(validate(frame, name).to_arrow() for frame in whole):
            writer.write_table(part.cast(writer.schema), row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({"rlhf_data.table": name})


def _joined(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Frames, small ones joined to some STREAMED rows: what a contract costs is calls, not rows."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(part.height for part in held) >= STREAMED:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def read(path: Path, name: str, columns: list[str] | None = None, where: pl.Expr | bool = True) -> pl.DataFrame:
    """Read a table that `write` wrote; its values were checked then, its columns and types are now.

    Args:
        path: a .parquet file.
        name: whose contract it keeps.
        columns: read only these.
        where: read only rows of which this holds.

    Raises:
        ContractError: it is not there, damaged, or of other columns or types.
    """
    frame = scan(path, name).filter(where)
    try:
        return (frame if columns is None else frame.select(columns)).collect()
    except pl.exceptions.PolarsError as error:
        raise ContractError(f"{path} is damaged: remove {path.parent} and run again ({error})") from None


def scan(path: Path | list[Path], name: str) -> pl.LazyFrame:
    """A table on disk, unread; its columns and types are checked against the contract.

    Raises:
        ContractError: other columns or types; the file is not a Parquet file.
    """
    try:
        frame = pl.scan_parquet(path, glob=False)
        found = dict(frame.collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        place = path[0].parent if isinstance(path, list) else path.parent
        raise ContractError(
            f"{name}: cannot read a table in {place}: remove that folder and run again ({error})"
        ) from None
    further = optional_columns(name)
    wanted = {**columns(name), **{c: further[c] for c in found if c in further}, **kept_columns(found, name)}
    if found != wanted:
        wrong = [c for c in wanted.keys() | found.keys() if wanted.get(c) != found.get(c)]
        raise ContractError(f"{name}: {path} has other columns or types than its contract: {', '.join(sorted(wrong))}")
    return frame


def _write(frame: pl.DataFrame, path: Path, name: str, *, published: bool) -> Path:
    with files.whole_file(path) as temporary:
        frame.write_parquet(
            temporary,
            compression="zstd",
            compression_level=2 if published else 1,
            row_group_size=ROW_GROUP,
            metadata={"rlhf_data.table": name},
        )
    return path


def _yaml() -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe")


@cache
def _without_unique(name: str) -> "DataFrameSchema":
    import copy

    schema = copy.deepcopy(contract(name))
    schema.unique = None
    return schema


@cache
def _register_checks() -> None:
    """Our own checks; registered by name so that the YAML form can hold them."""
    from pandera import extensions
    from pandera.polars import PolarsData

    @extensions.register_check_method(statistics=["wanted"])
    def finite(data: PolarsData, *, wanted: bool) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key).is_finite() if wanted else pl.lit(True))

    @extensions.register_check_method(statistics=["wanted"])
    def finite_items(data: PolarsData, *, wanted: bool) -> pl.LazyFrame:
        items = pl.col(data.key).list
        return data.lazyframe.select(items.eval(pl.element().is_finite()).list.all() if wanted else pl.lit(True))

    @extensions.register_check_method(statistics=["left", "right"])
    def columns_differ(data: PolarsData, *, left: str, right: str) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(left) != pl.col(right))


def _refuse_ignored(written: Any, understood: Any, where: str) -> None:
    """Raise where `written` holds a key that did not arrive in `understood`."""
    if not isinstance(written, dict):
        return
    for key, value in written.items():
        if not isinstance(understood, dict) or key not in understood:
            known = ", ".join(sorted(map(str, understood))) if isinstance(understood, dict) else "nothing"
            raise ValueError(f"{where}: pandera does not know {key!r}; here it knows {known}")
        _refuse_ignored(value, understood[key], f"{where}: {key}")


def _told(cases: pl.DataFrame, name: str) -> list[str]:
    counted = cases.group_by("column", "check", maintain_order=True).agg(
        n=pl.len(), first=pl.col("index").first(), case=pl.col("failure_case").first()
    )
    return [
        f"{name}.{row['column']}: {row['check']} fails in {row['n']} rows, first row {row['first']}: "
        f"{str(row['case'])[:80]}"
        for row in counted.iter_rows(named=True)
    ]
