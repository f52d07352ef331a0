"""The columns that are asked of a raw file: named by path, each of one type; cells of another type are refused.

A path is a column's name, or reaches into it: `data.prompt`, `annotations[0].result[0].value.selected`. A column whose
name is the whole path wins.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.observations import REASON
from rlhf_data.sources.readers import Raw, encodes, json_text
from rlhf_data.words import hint

# What a column can be asked for as, besides a polars type:
INFER: Final = "infer"  # whatever most of its cells are
JSON: Final = "json"  # JSON text, for values that nest without end
SCALAR: Final = "scalar"  # text of texts, numbers and booleans alike: ids, names
TURNS: Final = "turns"  # text, or a list of messages
Wanted = pl.DataType | str

# Cells of these Python types need no look one by one.
_ALIKE: dict[pl.DataType, set[type]] = {
    pl.String(): {str, type(None)},
    pl.Boolean(): {bool, type(None)},
    pl.Float64(): {float, type(None)},
}
_LARGEST = 1 << 1023  # about the largest float
_WHOLE = 1 << 53  # up to here a float holds every whole number
_TOKEN = re.compile(r"([^.\[\]]+)|\[(-?\d+)\]")


class Table(NamedTuple):
    """The columns asked for, without the records that were refused.

    Attributes:
        frame: record (UInt32), then a column for each path, named by it.
        rejects: record, code, detail: `json.invalid`, `json.duplicate_key`, `column.type`, `text.surrogate`.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame


class _MisfitError(Exception):
    """A cell that is not of its column's type: code, what it is."""


def table(raw: Raw, wanted: Mapping[str, Wanted]) -> Table:
    """The columns of `raw` at the paths asked for.

    Raises:
        ValueError: a column that the file does not have, or whose type can never be the one asked for; one named
            `record`.
    """
    if "record" in wanted:
        raise ValueError(f"{raw.name}: the column 'record' has the name of each record's number: rename it in the file")
    found = _quick(raw, wanted)
    if found is not None:
        return found
    missing = absent(_lacking(raw, wanted), raw.columns())
    if missing and raw.height > len(raw.broken):
        raise ValueError(f"{raw.name}: " + "; ".join(missing))
    rejects = [(record, broken.code, broken.what) for record, broken in raw.broken.items()]
    columns = []
    for path, kind in wanted.items():
        if isinstance(raw.rows, pl.DataFrame):
            column, misfits = _typed(raw.rows, path, kind, raw.name)
        else:
            try:
                column, misfits = _untyped(_values(raw.rows, path), kind)
            except RecursionError:
                raise ValueError(
                    f"{raw.name}: {path!r} nests too deep for a column: name the part that counts"
                ) from None
        columns.append(column.alias(path))
        rejects += [(record, code, f"{path} {detail}") for record, code, detail in misfits]
    frame = pl.DataFrame({"record": pl.Series(range(raw.height), dtype=pl.UInt32), **{c.name: c for c in columns}})
    refused = pl.DataFrame(rejects, schema=REASON, orient="row")
    return Table(
        frame.join(refused, on="record", how="anti", maintain_order="left"), refused.sort("record", maintain_order=True)
    )


def _quick(raw: Raw, wanted: Mapping[str, Wanted]) -> Table | None:
    """The columns of plain JSON lines, read all at once; None where a cell may need a look of its own."""
    frame = raw.quick
    if frame is None or absent(wanted, frame.columns):
        return None
    columns = []
    for path, kind in wanted.items():
        try:
            column = frame.select(value=_at(frame, path)).to_series()
            if kind == JSON or (kind == SCALAR and column.dtype not in (pl.String, pl.Int64, pl.Boolean, pl.Null)):
                return None
            cell = (pl.String() if column.dtype == pl.String else MESSAGES) if kind == TURNS else kind
            same = kind in (INFER, SCALAR) or column.dtype == pl.Null or _alike(column.dtype, cell)
            # What stands first in a list may be of a narrower type than the rest of it.
            picked = kind == INFER and path not in frame.columns and any(isinstance(s, int) for s in tokens(path))
            if picked or not _exact(column):
                return None
            cast, misfits = _typed(frame, path, kind, raw.name) if same else (column, [()])
        except (ValueError, TypeError, pl.exceptions.PolarsError):
            return None
        if misfits:
            return None
        columns.append(cast.alias(path))
    record = pl.int_range(frame.height, dtype=pl.UInt32, eager=True).alias("record")
    return Table(pl.DataFrame([record, *columns]), pl.DataFrame(schema=REASON))


def _exact(column: pl.Series) -> bool:
    """Whether no number in a column, however deep, can have lost digits or sign when it was read as a float."""
    if isinstance(column.dtype, pl.Struct):
        return all(_exact(field) for field in column.struct.unnest()) if column.dtype.fields else True
    if isinstance(column.dtype, pl.List):
        return _exact(column.explode(empty_as_null=False, keep_nulls=False))
    if column.dtype == pl.Int64:
        return (column.min() or 0) > -_bound(column.dtype)  # type: ignore[operator]
    return column.dtype != pl.Float64 or bool(column.is_between(-_WHOLE, _WHOLE).all())


def _alike(found: Any, wanted: Any) -> bool:
    """Whether a column of one type is one of the other without any text becoming a number."""
    if isinstance(wanted, pl.List):
        return isinstance(found, pl.List) and _alike(found.inner, wanted.inner)
    if isinstance(wanted, pl.Struct):
        held = {field.name: field.dtype for field in found.fields} if isinstance(found, pl.Struct) else {}
        return all(field.name in held and _alike(held[field.name], field.dtype) for field in wanted.fields)
    return found == wanted or (wanted.is_float() and found.is_numeric()) or found == pl.Null


def types(raw: Raw) -> dict[str, pl.DataType]:
    """The type of each column: a frame's own, or what most cells of a JSON file are."""
    if isinstance(raw.rows, pl.DataFrame):
        return dict(raw.rows.schema)
    return {name: infer(_values(raw.rows, name)) for name in raw.columns()}


def _lacking(raw: Raw, paths: Iterable[str]) -> list[str]:
    """The paths whose columns are neither in the file nor, of a piece, in the rest of its file."""
    names = {path: [path, str(tokens(path)[0])] for path in paths}
    lacking = set(raw.lacks(list(dict.fromkeys(name for both in names.values() for name in both))))
    return [path for path, both in names.items() if lacking.issuperset(both)]


def absent(paths: Iterable[str], columns: Sequence[str]) -> list[str]:
    """For each path whose column is not among `columns`: what is wrong and what was probably meant."""
    known = ", ".join(columns) or "none, as there is no row"
    return [
        f"no column {path!r}{hint(path, columns, ', ')}; the columns are {known}"
        for path in paths
        if path not in columns and tokens(path)[0] not in columns
    ]


def tokens(path: str) -> list[str | int]:
    """The steps of a path.

    >>> tokens("annotations[0].value")
    ['annotations', 0, 'value']
    """
    return [name or int(index) for name, index in _TOKEN.findall(path)] or [path]


def infer(values: Iterable[Any]) -> pl.DataType:
    """The type that most of the values have, and their parts; Null if there is none but null."""
    values = list(values)
    if set(map(type, values)) == {str}:
        return pl.String()
    classes: dict[str, list[Any]] = {}
    for value in values:
        if value is not None:
            classes.setdefault(_class(value), []).append(value)
    if not classes:
        return pl.Null()
    name = max(classes, key=lambda c: (len(classes[c]), c == "text"))
    found = classes[name]
    if name == "list":
        return pl.List(infer(item for value in found for item in value))
    if name == "object":
        keys = dict.fromkeys(key for value in found for key in value)
        return pl.Struct({key: infer(value.get(key) for value in found) for key in keys})
    if name == "number":
        if any(isinstance(value, float) for value in found):
            return pl.Float64()
        return pl.Int64() if all(abs(value) < 1 << 63 for value in found) else pl.Int128()
    return pl.Boolean() if name == "boolean" else pl.String()


def _class(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list) else "object"


def _values(rows: Sequence[dict[str, Any] | None], path: str) -> list[Any]:
    if any(row is not None and path in row for row in rows) or len(steps := tokens(path)) == 1:
        return [None if row is None else row.get(path) for row in rows]
    return [_walk(row, steps) for row in rows]


def _walk(value: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
    return value


def _untyped(values: list[Any], wanted: Wanted) -> tuple[pl.Series, list[tuple[int, str, str]]]:
    """JSON values as a column; a cell of another type is null and remembered."""
    dtype, fit = _fitting(values, wanted)
    if wanted != JSON and set(map(type, values)) <= _ALIKE.get(dtype, set()):
        try:
            return pl.Series(values, dtype=dtype, strict=True), []
        except UnicodeEncodeError:  # half of a surrogate pair: look at each
            pass
    cells, misfits = [], []
    for record, value in enumerate(values):
        try:
            cells.append(None if value is None else fit(value))
        except _MisfitError as misfit:
            cells.append(None)
            misfits.append((record, *misfit.args))
    return pl.Series(cells, dtype=dtype, strict=True), misfits


def _fitting(values: list[Any], wanted: Wanted) -> tuple[pl.DataType, Callable[[Any], Any]]:
    if wanted == JSON:
        return pl.String(), json_text
    if wanted == SCALAR:
        return pl.String(), lambda value: _scalar(value)
    if wanted == TURNS:
        wanted = MESSAGES if infer_class(values) == "list" else pl.String()
    dtype = infer(values) if isinstance(wanted, str) else wanted
    return dtype, lambda value: _fit(value, dtype)


def infer_class(values: Iterable[Any]) -> str | None:
    """What most of the values are: text, number, boolean, list or object."""
    counted = Counter(_class(value) for value in values if value is not None).most_common(1)
    return counted[0][0] if counted else None


def _scalar(value: Any) -> str:
    if isinstance(value, list | dict):
        raise _MisfitError("column.type", f"is a {_class(value)}, not text: {_shown(value)}")
    return _fit(value, pl.String()) if isinstance(value, str) else json_text(value)


def _fit(value: Any, dtype: pl.DataType) -> Any:
    """The value as one of `dtype`, or _MisfitError: nothing is converted but whole numbers to floats."""
    if value is None:
        return None
    name = _class(value)
    if isinstance(dtype, pl.List) and name == "list":
        return [_fit(item, dtype.inner) for item in value]  # pyright: ignore[reportArgumentType]
    if isinstance(dtype, pl.Struct) and name == "object":
        return {field.name: _fit(value.get(field.name), field.dtype) for field in dtype.fields}  # pyright: ignore[reportArgumentType]
    if dtype == pl.String and name == "text":
        if not value.isascii() and not encodes(value):
            raise _MisfitError("text.surrogate", "has half of a surrogate pair, which is no character")
        return value
    if dtype == pl.Boolean and name == "boolean":
        return value
    if name == "number" and dtype.is_float() and (isinstance(value, float) or abs(value) < _LARGEST):
        return float(value)
    if name == "number" and dtype.is_integer() and isinstance(value, int) and abs(value) < _bound(dtype):
        return value
    if name == "number" and isinstance(value, int):
        raise _MisfitError("column.type", f"is too large a number: {_shown(value)}")
    raise _MisfitError("column.type", f"is a {name}, not {_words(dtype)}: {_shown(value)}")


def _bound(dtype: pl.DataType) -> int:
    return 1 << (127 if dtype == pl.Int128 else 63)


def _shown(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _words(dtype: pl.DataType) -> str:
    if dtype == MESSAGES:
        return "a list of messages"
    if isinstance(dtype, pl.List | pl.Struct):
        return "a list" if isinstance(dtype, pl.List) else "an object"
    return "text" if dtype == pl.String else "a boolean" if dtype == pl.Boolean else "a number"


def _typed(frame: pl.DataFrame, path: str, wanted: Wanted, name: str) -> tuple[pl.Series, list[tuple[int, str, str]]]:
    """A column of a frame whose types are known: Parquet, a data set, CSV."""
    try:
        column = frame.select(value=_at(frame, path)).to_series()
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise ValueError(f"{name}: {path!r} leads nowhere: {error}") from None
    column = column.cast(pl.String) if isinstance(column.dtype, pl.Categorical | pl.Enum) else column
    if wanted == JSON:
        return pl.Series([None if v is None else json_text(v) for v in column.to_list()], dtype=pl.String), []
    if wanted == INFER or column.dtype == pl.Null:
        return column if wanted == INFER else column.cast(_plain(wanted)), []
    if wanted == SCALAR and not column.dtype.is_nested():
        return column.cast(pl.String), []
    if wanted == TURNS:
        wanted = MESSAGES if isinstance(column.dtype, pl.List) else pl.String()
    return _cast(column, _plain(wanted), f"{name}: {path}")


def _plain(wanted: Wanted) -> pl.DataType:
    return pl.String() if isinstance(wanted, str) else wanted


def _at(frame: pl.DataFrame, path: str) -> pl.Expr:
    if path in frame.columns:
        return pl.col(path)
    first, *rest = tokens(path)
    value = pl.col(str(first))
    for step in rest:
        value = value.struct.field(step) if isinstance(step, str) else value.list.get(step, null_on_oob=True)
    return value


def _cast(column: pl.Series, wanted: pl.DataType, where: str) -> tuple[pl.Series, list[tuple[int, str, str]]]:
    """The column as `wanted`; texts become numbers or booleans, everything else must be so already."""
    if column.dtype == wanted:
        return column, []
    if column.dtype == pl.String and (wanted.is_numeric() or wanted == pl.Boolean):
        text = column.str.strip_chars()
        flags = {"true": True, "false": False}
        flag = text.str.to_lowercase().replace_strict(flags, default=None, return_dtype=pl.Boolean)
        cast = flag if wanted == pl.Boolean else text.cast(wanted, strict=False)
        wrong = (column.is_not_null() & cast.is_null()).arg_true()
        return cast, [(int(i), "column.type", f"is not {_words(wanted)}: {_shown(column[i])}") for i in wrong]
    if wanted.is_float() and column.dtype.is_numeric():
        return column.cast(wanted), []
    if wanted.is_integer() and column.dtype.is_integer():
        return column.cast(wanted), []
    if wanted.is_nested() and column.dtype.is_nested():
        try:
            return _reshaped(column, wanted), []
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{where}: {error}") from None
    raise ValueError(f"{where}: is {column.dtype}, but it must be {_words(wanted)}")


def _reshaped(column: pl.Series, wanted: pl.DataType) -> pl.Series:
    """A nested column with the wanted fields only, in the wanted order; an absent field is an error."""
    return column.to_frame("value").select(_picked(pl.col("value"), wanted)).to_series()


def _picked(value: pl.Expr, wanted: Any) -> pl.Expr:
    if isinstance(wanted, pl.List):
        return value.list.eval(_picked(pl.element(), wanted.inner))
    if isinstance(wanted, pl.Struct):
        fields = [_picked(value.struct.field(f.name), f.dtype).alias(f.name) for f in wanted.fields]
        return pl.when(value.is_not_null()).then(pl.struct(fields))
    return value.cast(wanted)
