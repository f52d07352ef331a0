"""Raw files as they are: JSON lines, JSON arrays, CSV, TSV, Parquet and Excel, each also gzipped, and `datasets`.

Nothing here infers a type. JSON and Excel keep the types of their values, so that a boolean among texts is seen and not
turned into "true"; every cell of a CSV is text. What columns are made of it is decided in `cells`.
"""

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import polars as pl
from xxhash import xxh3_128_hexdigest

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "xlsx")
SUFFIXES = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}
PEEKED = 1000  # records that `peek` looks at: a column that only starts later is not seen by it
PIECE_BYTES = 32 << 20  # of JSON lines
PIECE_ROWS = 100_000  # of Parquet
DEEPEST = 50  # levels of lists and objects that are read all at once
_QUOTED, _MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"'), re.compile(rb"[\[\]{}]")
_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 28  # bytes; DuckDB stops at 2 MB by itself
_EXACT = 1 << 53  # up to here every whole number is a float
_NOT_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


class Broken(NamedTuple):
    """A record that is no JSON object, or an ambiguous one: what is wrong with it, its text, and the code."""

    what: str
    text: str
    code: str = "json.invalid"


class RepeatedKeyError(ValueError):
    """A JSON object names a key twice: which of its values is meant, nobody can say."""


class Raw:
    """A raw file, or a piece of one, that was read before anything is asked of it.

    Attributes:
        name: the file's name.
        rows: JSON objects (None where a record is broken), or a frame of a typed format.
        broken: the records that are no JSON object.
        known: the columns of the whole file, as far as they have been asked for, where this is a piece of it.
        elsewhere: says which of some columns the whole file has.
    """

    known: Sequence[str] | None = None
    elsewhere: Callable[[Sequence[str]], Sequence[str]] | None = None

    def __init__(
        self,
        name: str,
        rows: list[dict[str, Any] | None] | pl.DataFrame | None = None,
        broken: dict[int, Broken] | None = None,
        *,
        lines: bytes = b"",
        line: int = 1,
    ) -> None:
        """Rows as they are, or else `lines` of JSON, the first of them line number `line` of the file."""
        self.name, self._rows, self._broken, self._lines, self._line = name, rows, broken or {}, lines, line

    @property
    def rows(self) -> list[dict[str, Any] | None] | pl.DataFrame:
        if self._rows is None:
            self._rows, self._broken = _objects(_values(io.BytesIO(self._lines), self._line))
        return self._rows

    @property
    def broken(self) -> dict[int, Broken]:
        return self._broken if self.rows is not None else {}

    @cached_property
    def quick(self) -> pl.DataFrame | None:
        """The lines as a frame, where they are plain enough that it says the same as the objects."""
        return _frame(self._lines) if self._rows is None else None

    @property
    def height(self) -> int:
        return len(self.rows) if self.quick is None else self.quick.height

    def columns(self) -> list[str]:
        """The names of the columns; for JSON of all keys that occur, in order of appearance."""
        if self.quick is not None:
            return self.quick.columns
        if isinstance(self.rows, pl.DataFrame):
            return self.rows.columns
        return list(dict.fromkeys(key for row in self.rows if row is not None for key in row))

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of some columns that neither the piece nor the rest of its file has."""
        absent = [name for name in names if name not in self.columns() and name not in (self.known or ())]
        if not absent or self.elsewhere is None:
            return absent
        found = self.elsewhere(absent)
        return [name for name in absent if name not in found]

    def as_json(self, record: int) -> str:
        """One record as JSON text, for the quarantine."""
        row = self.rows.row(record, named=True) if isinstance(self.rows, pl.DataFrame) else self.rows[record]
        return json_text({"broken": self.broken[record].text} if row is None else row)


class Piece(NamedTuple):
    """A part of a raw file that is read, and whose result is kept, by itself.

    Attributes:
        name: the file's name.
        digest: of what it holds and where that stands.
        load: reads it.
    """

    name: str
    digest: str
    load: Callable[[], Raw]


def json_text(value: Any) -> str:
    """JSON text that UTF-8 can hold: characters stay readable unless one of them is half a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if encodes(text) else json.dumps(value, default=str)


def encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def format_of(path: str | Path, format: str | None = None) -> str:
    """The format of a file, from its name unless it is given.

    Raises:
        ValueError: the name says nothing, or no such format.
    """
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"no format named {format!r}; known formats: {', '.join(FORMATS)}")
        return format
    name = Path(path).name.lower().removesuffix(".gz")
    found = SUFFIXES.get(Path(name).suffix)
    if found is None:
        raise ValueError(f"{path}: the name does not say what it is; add `format:` (one of {', '.join(FORMATS)})")
    return found


def read(
    path: str | Path,
    *,
    name: str | None = None,
    format: str | None = None,
    limit: int | None = None,
    quote: str | None = None,
    separator: str | None = None,
    sheet: str | None = None,
) -> Raw:
    """Read one raw file.

    Args:
        path: the file.
        name: what to call it; its base name if not given.
        format: one of FORMATS; from the file's name if not given.
        limit: read no more than the first records.
        quote: CSV and TSV: the quoting character, "" for none; a double quote in CSV and none in TSV if not given.
        separator: CSV and TSV: what separates the fields.
        sheet: Excel: the name of the sheet; must be given where there are several.

    Raises:
        ValueError: the file cannot be read to its end; the message says where it stops making sense.
    """
    path, kind = Path(path), format_of(path, format)
    name = name or path.name
    try:
        _refuse_utf16(path, kind)
        if kind == "xlsx":
            return Raw(name, _sheet(path, None if sheet is None else str(sheet), limit), {})  # YAML may say 2024
        if kind == "jsonl":
            return Raw(name, *_objects(itertools.islice(_lines(path), limit)))
        if kind == "json":
            return Raw(name, *_objects((i, value) for i, value in enumerate(_array(path)[:limit])))
        if kind == "parquet":
            return Raw(name, _parquet(path, limit), {})
        quote = ('"' if kind == "csv" else "") if quote is None else quote
        return Raw(name, _delimited(path, separator or ("," if kind == "csv" else "\t"), quote, limit), {})
    except _NOT_GZIP as error:
        raise ValueError(f"{path}: the gzip file is damaged: {error}; fetch it again") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None


def pieces(
    path: str | Path,
    *,
    name: str,
    format: str | None = None,
    digest: str,
    names: Sequence[str] = (),
    **reading: Any,
) -> Iterator[Piece]:
    """A raw file in pieces of bounded size: JSON lines by bytes, Parquet by rows, others whole.

    Lines that are added at the end of a file leave its first pieces as they were.

    Args:
        path: the file.
        name: what to call it.
        format: one of FORMATS; from the file's name if not given.
        digest: of the file's bytes.
        names: columns that mean something wherever in the file they occur: each piece knows which of them there are.
        reading: further arguments of `read`.

    Raises:
        ValueError: as `read`.
    """
    path, kind = Path(path), format_of(path, format)
    if kind == "jsonl":
        _refuse_utf16(path, kind)
        elsewhere = cache(lambda asked: _columns_among(path, asked))
        for line, block, last in _marked(_blocks(path)):
            mark = f"{xxh3_128_hexdigest(block)}@{line}"
            if last and line == 1:
                yield Piece(name, mark, partial(Raw, name, lines=block))
                return
            known = elsewhere(tuple(names)) if names else None
            yield Piece(name, f"{mark}:{known}", partial(_piece, name, block, line, known, elsewhere))
    elif kind == "parquet" and not path.name.lower().endswith(".gz"):
        height = _checked_parquet(path).select(pl.len()).collect().item()
        for start in range(0, max(1, height), PIECE_ROWS):
            yield Piece(name, f"{digest}@{start}", partial(_slice, path, name, start))
    else:
        yield Piece(name, digest, partial(read, path, name=name, format=format, **reading))


def _piece(
    name: str,
    block: bytes,
    line: int,
    known: Sequence[str] | None,
    elsewhere: Callable[[tuple[str, ...]], Sequence[str]],
) -> Raw:
    raw = Raw(name, lines=block, line=line)
    raw.known, raw.elsewhere = known, lambda asked: elsewhere(tuple(asked))
    return raw


def _marked(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, bool]]:
    """Each block, and whether it is the last one."""
    before = next(blocks, None)
    while before is not None:
        after = next(blocks, None)
        yield *before, after is None
        before = after


def _columns_among(path: Path, names: Sequence[str]) -> list[str]:
    """Those of some names that are columns of a JSON lines file; only blocks that have one as a key are taken apart."""
    found: dict[str, None] = {}
    for line, block in _blocks(path):
        open_names = [name for name in names if name not in found]
        keys = {json.dumps(name, ensure_ascii=ascii).encode() for name in open_names for ascii in (True, False)}
        if any(key in block and re.search(re.escape(key) + rb"\s*:", block) for key in keys):
            there = set(Raw("", lines=block, line=line).columns())
            found.update(dict.fromkeys(name for name in open_names if name in there))
    return [name for name in names if name in found]


def _slice(path: Path, name: str, start: int) -> Raw:
    try:
        return Raw(name, pl.scan_parquet(path, glob=False).slice(start, PIECE_ROWS).collect(), {})
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not a whole Parquet file: {error}; fetch it again") from None


def _checked_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        frame.collect_schema()
        return frame
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: not a whole Parquet file: {error}; fetch it again") from None


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file, PIECE_BYTES at a time, with the number of the first of them."""
    line, rest = 1, b""
    try:
        with _open(path) as file:
            while more := file.read(PIECE_BYTES):
                held = rest + more
                end = held.rfind(b"\n") + 1
                if end:
                    yield line, held[:end]
                    line += held.count(b"\n", 0, end)
                rest = held[end:]
    except _NOT_GZIP as error:
        told = f"the gzip file is damaged after line {_sound_lines(path)}: {error}; fetch it again"
        raise ValueError(f"{path}: {told}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    if rest or line == 1:
        yield line, rest


def _sound_lines(path: Path) -> int:
    """How many lines of a damaged gzip file come before the damage, or somewhat fewer."""
    count = 0
    with suppress(*_NOT_GZIP), _open(path) as file:
        for _ in file:
            count += 1
    return count


def _frame(lines: bytes) -> pl.DataFrame | None:
    """JSON lines as a frame, or None where Arrow's reader refuses them or could read them otherwise than we do.

    It refuses what we want refused one by one: values of several types in a column, keys named twice, half surrogates.
    What it would read in its own way is looked for here: dates (texts to us), an object on two lines or two on one,
    infinite numbers (it knows more words for them).
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    text = lines.strip(b"\r\n \t")
    if not (text.startswith(b"{") and text.endswith(b"}")) or b"\r" in text:
        return None
    ends = text.count(b"}\n{")  # nothing but two objects can meet so: inside of one a comma would stand between
    if text.count(b"\n") != ends:
        return None
    if _deepest(text, ends + 1) > DEEPEST:
        return None
    options = arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    try:
        text.decode()
        table = arrow_json.read_json(io.BytesIO(text), options)
        if table.num_rows != ends + 1:
            return None
        as_text = _without_dates(table.schema)
        if as_text != table.schema:
            table = arrow_json.read_json(io.BytesIO(text), options, arrow_json.ParseOptions(explicit_schema=as_text))
        frame = pl.from_arrow(table)
    except (UnicodeDecodeError, pa.ArrowException, pl.exceptions.PolarsError):
        return None
    return frame if isinstance(frame, pl.DataFrame) and all(map(_finite, frame)) else None


def _finite(column: pl.Series) -> bool:
    """Whether each number of a column, however deep, is a finite one."""
    if isinstance(column.dtype, pl.Struct):
        return all(map(_finite, column.struct.unnest())) if column.dtype.fields else True
    if isinstance(column.dtype, pl.List):
        return _finite(column.explode(empty_as_null=False, keep_nulls=False))
    return not column.dtype.is_float() or bool(column.is_finite().all())


def _deepest(text: bytes, lines: int) -> int:
    """How deep the values of any line nest, or something smaller than DEEPEST if it is no deeper than that.

    Arrow's reader calls itself for each level: some thousands of them, in a damaged file, would end the process.
    """
    if text.count(b"{") + text.count(b"[") - lines < DEEPEST:  # one for each line, the others all in one of them
        return 0
    deepest = 0
    for line in io.BytesIO(text):
        if line.count(b"{") + line.count(b"[") > DEEPEST:  # most of these stand in texts
            marks = _MARKS.findall(_QUOTED.sub(b"", line))
            deepest = max(deepest, *itertools.accumulate((1 if mark in b"[{" else -1) for mark in marks), 0)
    return deepest


def _without_dates(schema: Any) -> Any:
    import pyarrow as pa

    def plain(dtype: Any) -> Any:
        if pa.types.is_timestamp(dtype):
            return pa.string()
        if pa.types.is_struct(dtype):
            return pa.struct([pa.field(field.name, plain(field.type)) for field in dtype])
        return pa.list_(plain(dtype.value_type)) if pa.types.is_list(dtype) else dtype

    return pa.schema([pa.field(field.name, plain(field.type)) for field in schema])


def peek(
    path: str | Path,
    *,
    format: str | None = None,
    quote: str | None = None,
    separator: str | None = None,
    sheet: str | None = None,
) -> Raw:
    """The first records of a file, cheaply: a JSON array is read as far as they go.

    Raises:
        ValueError: as `read`.
    """
    path = Path(path)
    if format_of(path, format) != "json":
        return read(path, format=format, limit=PEEKED, quote=quote, separator=separator, sheet=sheet)
    try:
        _refuse_utf16(path, "json")
        return Raw(path.name, *_objects(enumerate(itertools.islice(_first_of_array(path), PEEKED))))
    except _NOT_GZIP as error:
        raise ValueError(f"{path}: the gzip file is damaged: {error}; fetch it again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_dataset(reference: str, *, limit: int | None = None) -> Raw:
    """Read a data set of the hub, or a folder that `datasets` understands.

    Args:
        reference: PATH or org/name, then optionally @REVISION, then optionally :SPLIT.
        limit: keep the first records.

    Raises:
        ValueError: it cannot be loaded, or has several splits and none is named.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    location, _, split = reference.partition(":")
    location, _, revision = location.partition("@")
    folder = Path(location)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(location)
        else:
            loaded = datasets.load_dataset(location, revision=revision or None)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"{reference}: `datasets` cannot load it: {error}") from None
    chosen = _split(loaded, split, reference) if isinstance(loaded, dict) else loaded
    kept = chosen if limit is None else chosen.select(range(min(limit, len(chosen))))
    frame = pl.from_arrow(kept.with_format("arrow")[:])
    assert isinstance(frame, pl.DataFrame)
    return Raw(reference, frame, {})


def _split(loaded: dict[Any, Any], split: str, reference: str) -> Any:
    names = [str(name) for name in loaded]
    if not split and len(names) == 1:
        split = names[0]
    if split not in names:
        wanted = f"has no split {split!r}" if split else "has several splits"
        raise ValueError(f"{reference}: {wanted}; write one of {', '.join(f':{name}' for name in names)} after it")
    return loaded[split]


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a JSON lines file; a line that is not JSON gives its error as the value."""
    number = 0
    with _open(path) as lines:
        try:
            for number, value in _values(lines, 1):
                yield number, value
        except _NOT_GZIP as error:
            raise ValueError(f"{path}: the gzip file is damaged after line {number}: {error}; fetch it again") from None


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RepeatedKeyError: an object in it, however deep, names a key twice.
        ValueError: not JSON.
        RecursionError: nested too deep.
    """
    return json.loads(text, object_pairs_hook=_unambiguous)


def json_code(error: Exception) -> str:
    """The code by which a record that `strict_json` did not take is refused."""
    return "json.duplicate_key" if isinstance(error, RepeatedKeyError) else "json.invalid"


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if any(key == earlier for earlier, _ in pairs[:i]))
        raise RepeatedKeyError(f"the key {json_text(key)} stands twice in one object")
    return found


_STRICT, _PLAIN = json.JSONDecoder(object_pairs_hook=_unambiguous), json.JSONDecoder()


def _values(lines: Iterable[bytes], first: int) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                yield number, strict_json(line)
            except (ValueError, RecursionError) as error:
                text = line.decode(errors="backslashreplace").rstrip("\r\n")
                yield number, Broken(f"line {number}: {error}", text, json_code(error))


def _objects(values: Any) -> tuple[list[dict[str, Any] | None], dict[int, Broken]]:
    rows: list[dict[str, Any] | None] = []
    broken: dict[int, Broken] = {}
    for record, (_, value) in enumerate(values):
        if isinstance(value, dict):
            rows.append(value)
        else:
            rows.append(None)
            whole = json_text(value) if not isinstance(value, Broken) else ""
            broken[record] = (
                value if isinstance(value, Broken) else Broken(f"not a JSON object but {whole[:80]}", whole)
            )
    return rows, broken


def _array(path: Path) -> list[Any]:
    with _open(path) as file:
        content = file.read()
    try:
        try:
            value = strict_json(content)
        except RepeatedKeyError:  # of which record?
            json.loads(content)
            return list(_first_of_array(path))
    except json.JSONDecodeError as error:
        hint = "; is it JSON lines? then say `format: jsonl`" if error.msg == "Extra data" else ""
        raise ValueError(f"{path}: not valid JSON: {error}{hint}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    if not isinstance(value, list):
        raise ValueError(f"{path}: holds one JSON {type(value).__name__}, not an array of records")
    return value


def _first_of_array(path: Path) -> Iterator[Any]:
    """The entries of a JSON array one by one, reading no further than they are asked for."""
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as chars:
        text = chars.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path}: does not hold a JSON array of records")
        at = 1
        while True:
            text, at = text[at:].lstrip(" \t\r\n,"), 0
            if text.startswith("]"):
                return
            try:
                value, at = _entry(text)
            except json.JSONDecodeError as error:
                more = chars.read(max(_CHUNK, len(text)))
                if not more:
                    raise ValueError(f"{path}: not valid JSON: {error.msg}") from None
                text += more
                continue
            yield value


def _entry(text: str) -> tuple[Any, int]:
    """The entry at the start of the text, and where it ends; one with a repeated key is broken by itself."""
    try:
        return _STRICT.raw_decode(text)
    except RepeatedKeyError as error:
        _, end = _PLAIN.raw_decode(text)
        return Broken(str(error), text[:end], json_code(error)), end


def _refuse_utf16(path: Path, kind: str) -> None:
    """Stop at a text of two bytes a character: a line of it ends in the middle of a character.

    Raises:
        ValueError: the file begins with a mark of UTF-16 or UTF-32, or every other of its first bytes is zero.
    """
    if kind in ("parquet", "xlsx"):
        return
    with _open(path) as file:
        start = file.read(4)
    zeros = [byte == 0 for byte in start]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or zeros in ([True, False] * 2, [False, True] * 2):
        hint = f"convert it, as in `iconv -f UTF-16 -t UTF-8 {path.name}`"
        raise ValueError(f"{path}: is UTF-16 (or UTF-32), but raw texts must be UTF-8; {hint}")


def _sheet(path: Path, sheet: str | None, limit: int | None) -> list[dict[str, Any] | None]:
    """The rows of a sheet as objects; the first row names the columns, blank rows are left out.

    A cell keeps the type that the sheet gives it: texts, numbers (whole ones as int: a sheet knows no other), booleans;
    dates, times and durations become texts (ISO 8601). An empty cell is null, and so is one that holds an error (#N/A).
    """
    from python_calamine import CalamineError, CalamineWorkbook

    with _open(path) as file:
        content = io.BytesIO(file.read())
    try:
        book = CalamineWorkbook.from_filelike(content)
        names = book.sheet_names
        if sheet is None and len(names) != 1:
            raise ValueError(
                f"{path}: has the sheets {', '.join(names)}; say which one with `options: {{sheet: NAME}}`"
            )
        if sheet is not None and sheet not in names:
            raise ValueError(f"{path}: has no sheet {sheet!r}; it has {', '.join(names)}")
        # The used area may begin below blank rows; the header is the first row that is not blank.
        rows = (row for row in book.get_sheet_by_name(sheet or names[0]).to_python() if any(c != "" for c in row))
        header = [_cell(name) for name in next(rows, [])]
        named = [name for name in header if name is not None]
        if not named or len(set(map(str, named))) < len(named):
            raise ValueError(f"{path}: the first row must name each column once; it is {json_text(header)}")
        found: list[dict[str, Any] | None] = []
        for row in itertools.islice(rows, limit):
            cells = [_cell(value) for value in row]
            stray = [value for name, value in zip(header, cells, strict=True) if name is None and value is not None]
            if stray:
                raise ValueError(f"{path}: row {len(found) + 2} has {stray[0]!r} in a column without a name")
            found.append({str(name): value for name, value in zip(header, cells, strict=True) if name is not None})
        return found
    except CalamineError as error:
        raise ValueError(f"{path}: not an Excel file: {error}") from None


def _cell(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return None if value == "" else value
    return str(value) if isinstance(value, timedelta) else value.isoformat()


def _parquet(path: Path, limit: int | None) -> pl.DataFrame:
    try:
        if path.name.lower().endswith(".gz"):
            with _open(path) as file:
                return pl.read_parquet(io.BytesIO(file.read()), n_rows=limit)
        return pl.scan_parquet(path, glob=False).head(limit).collect() if limit else pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not a whole Parquet file: {error}; fetch it again") from None


def _delimited(path: Path, separator: str, quote: str, limit: int | None) -> pl.DataFrame:
    """CSV through DuckDB's strict reader: all cells text, null only where a field is empty and not quoted.

    polars would fill a short line with nulls; Python's csv cannot tell "" from nothing.
    """
    import duckdb

    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
        quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
        header = next(csv.reader(lines, delimiter=separator, quotechar=quote or None, quoting=quoting), [])
    if not header:
        raise ValueError(f"{path} is empty: line 1 must name the columns")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: line 1 must name each column once; it is {separator.join(header)!r}")
    query = """SELECT * FROM read_csv($path, auto_detect = false, header = true, columns = $columns, delim = $delim,
        quote = $quote, escape = $quote, nullstr = '', allow_quoted_nulls = false, null_padding = false,
        strict_mode = true, max_line_size = $longest)"""
    given = {"path": str(path), "columns": dict.fromkeys(header, "VARCHAR"), "delim": separator, "quote": quote}
    with duckdb.connect() as connection:
        try:
            relation = connection.sql(query, params={**given, "longest": _LONGEST_LINE})
            return relation.limit(limit).pl() if limit else relation.pl()
        except duckdb.Error as error:
            if "state machine" in str(error):
                _refuse_mixed_line_ends(path)
            lines_of = str(error).split("Possible ")[0].strip().splitlines()
            raise ValueError(f"{path}: {'; '.join(line for line in lines_of if line)}") from None


def _refuse_mixed_line_ends(path: Path) -> None:
    """ValueError where some lines end in CR LF and others in LF alone; DuckDB says only that its state is invalid."""
    with _open(path) as file:
        ends = [line.endswith(b"\r\n") for line in file]
    if any(ends) and not all(ends[:-1]):
        other = ends.index(not ends[0]) + 1
        kinds = ("LF", "CR LF") if ends[0] else ("CR LF", "LF")
        raise ValueError(
            f"{path}: line {other} ends in {kinds[0]}, the lines before it in {kinds[1]}: write all alike, such as by "
            f"sed -i 's/\\r$//' {path.name}"
        )
