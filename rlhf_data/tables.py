"""The data tables: their contracts, and the only code that validates, reads and writes them.

A contract is a file in schemas/, in pandera's own YAML form. Three things that pandera lets pass are closed here once
for all: a misspelt key of a contract, a LazyFrame (of which pandera checks the types only), and NaN or inf (which pass
`greater_than`).
"""

import threading
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rlhf_data import files
from rlhf_data.ids import MESSAGES

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from pandera.polars import DataFrameSchema

__all__ = [
    "ContractError", "columns", "conform", "contract", "empty", "folder", "parse_contract", "read", "scan", "validate",
    "write", "write_parts",
]  # fmt: skip

ROW_GROUP = 50_000
NAMES = ("prompts", "completions", "judgments", "rated", "compared", "splits", "unpaired", "paired", "quarantine")

# The narrow tables between `shape` and `publish`: the published ones without their texts.
TEXTS = {"paired_rows": ("prompt", "chosen", "rejected"), "unpaired_rows": ("prompt", "completion", "model")}

# The types that contracts use, as they are written there.
DTYPES: dict[str, pl.DataType] = {
    str(dtype): dtype for dtype in (pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.List(pl.String), MESSAGES)
}


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
    if name in TEXTS:
        return contract(name.removesuffix("_rows")).remove_columns(list(TEXTS[name]))
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


@cache
def columns(name: str) -> dict[str, pl.DataType]:
    """Column names and polars types of a table, in the contract's order (pandera is slow to load: read without)."""
    table = name.removesuffix("_rows")
    written = _yaml().load((folder("schemas") / f"{table}.yaml").read_text(encoding="utf-8"))["columns"]
    texts = TEXTS.get(name, ())
    return {column: DTYPES[c["dtype"]] for column, c in written.items() if column not in texts}


def empty(name: str) -> pl.DataFrame:
    return pl.DataFrame(schema=columns(name))


def conform(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """`frame` with the contract's columns in the contract's order; absent ones that may be null are null.

    Raises:
        ContractError: a column that may not be null is absent, or a value cannot be of its column's type.
    """
    schema, types = contract(name), columns(name)
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

    schema = contract(name)
    if not unique:
        schema = _without_unique(name)
    frame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    try:
        return schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        raise ContractError(_explain(errors.failure_cases, name)) from None


def write(frame: pl.DataFrame, path: Path, name: str, *, published: bool = False) -> Path:
    """Validate a table and write it, whole or not at all.

    Args:
        frame: the table; absent nullable columns are added.
        path: a .parquet file; its folder exists.
        name: whose contract it keeps.
        published: compress for keeping (zstd-3) and not for speed (zstd-1).
    """
    checked = validate(conform(frame, name), name)
    return _write(checked, path, name, published=published)


def write_parts(frame: pl.DataFrame, paths: list[Path], name: str) -> None:
    """Validate a table whole and write it for keeping, cut into as many files as there are paths."""
    checked = validate(conform(frame, name), name)
    size = -(-checked.height // len(paths)) if paths else 0
    for k, path in enumerate(paths):
        _write(checked.slice(k * size, size), path, name, published=True)


def read(path: Path, name: str) -> pl.DataFrame:
    """Read a table that `write` wrote and check it again.

    Raises:
        ContractError: it is not there, damaged, or does not keep its contract.
    """
    try:
        return validate(scan(path, name).collect(), name)
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
    wanted = columns(name)
    if found != wanted:
        wrong = [c for c in wanted.keys() | found.keys() if wanted.get(c) != found.get(c)]
        raise ContractError(f"{name}: {path} has other columns or types than its contract: {', '.join(sorted(wrong))}")
    return frame


def _write(frame: pl.DataFrame, path: Path, name: str, *, published: bool) -> Path:
    with files.whole_file(path) as temporary:
        frame.write_parquet(
            temporary,
            compression="zstd",
            compression_level=3 if published else 1,
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


def _explain(cases: pl.DataFrame, name: str) -> str:
    counted = (
        cases.with_columns(pl.col("failure_case").cast(pl.String, strict=False))
        .group_by("column", "check", maintain_order=True)
        .agg(n=pl.len(), first=pl.col("index").first(), case=pl.col("failure_case").first())
    )
    lines = [
        f"{name}.{row['column']}: {row['check']} fails in {row['n']} rows, first row {row['first']}: "
        f"{str(row['case'])[:80]}"
        for row in counted.iter_rows(named=True)
    ]
    return "the table breaks its contract:\n  " + "\n  ".join(lines)
