"""The real steps on observations: their tables by the oracle's merging, or by reading files; rows come as dicts."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.clean.collect import collect
from rlhf_data.rate.rate import rate
from rlhf_data.shape.paired import to_paired
from rlhf_data.shape.split import split
from rlhf_data.shape.unpaired import to_unpaired
from rlhf_data.sources.ingest import ingest
from rlhf_data.weigh.weight import weigh
from tests.laws import oracle, raw
from tests.laws.oracle import Observation

Rows = list[dict[str, Any]]
NOTED = ("kind", "aspect", "annotator", "source", "file", "record")
SHAPES = {"paired": to_paired, "unpaired": to_unpaired}


_HELD: dict[Path, pl.DataFrame] = {}  # tables by the path that they would be written to
_IN_MEMORY: set[Path] = set()  # folders whose tables are held and not written
_read, _scan, _write, _write_stream = tables.read, tables.scan, tables.write, tables.write_stream


class Folder:
    """A folder of steps, gone when the case is over.

    Its tables are held in memory, not validated and written: that is four fifths of a small case's time. Contracts and
    files have tests of their own, and the laws of files go through both.
    """

    def __init__(self, *, on_disk: bool = False) -> None:
        self.path = Path(mkdtemp(prefix="laws-"))
        self.counts: dict[str, list[Count]] = {}
        if not on_disk:
            _IN_MEMORY.add(self.path)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)
        _IN_MEMORY.discard(self.path)
        for path in [path for path in _HELD if path.is_relative_to(self.path)]:
            del _HELD[path]

    def step(self, name: str) -> Path:
        (path := self.path / name).mkdir(exist_ok=True)
        return path

    def hold(self, seen: Sequence[Observation]) -> "Folder":
        """The text folder of observations, without texts: the oracle merges them."""
        held = oracle.merged(seen)
        prompt_ids = sorted({oracle.prompt_id(text.prompt) for text in held.values()})
        of = {oracle.prompt_id(text.prompt): text.prompt for text in held.values()}
        answers = sorted(held, key=lambda key: (oracle.prompt_id(held[key].prompt), key))
        prompt_row, row = ({key: k for k, key in enumerate(keys)} for keys in (prompt_ids, answers))
        nowhere = {"chunk": 0, "place": 0}
        prompts = [{"prompt_row": k, "prompt_id": key, "split_key": key, **nowhere} for key, k in prompt_row.items()]
        completions = [
            {
                "completion_row": row[key],
                "completion_id": key,
                "bits": oracle.bits(key),
                "prompt_row": prompt_row[oracle.prompt_id(held[key].prompt)],
                "source": held[key].source,
                "category": held[key].category,
                **nowhere,
            }
            for key in answers
        ]
        judged = sorted(((row[one.first], k) for k, one in enumerate(seen)))
        judgments = [
            {
                "judgment_row": number,
                "prompt_row": prompt_row[seen[k].prompt_id],
                "completion_row": at,
                "other_row": None if seen[k].second is None else row[seen[k].second],
                "value": None if seen[k].value is None else float(seen[k].value),
                **{
                    name: getattr(seen[k], name) for name in ("kind", "aspect", "annotator", "source", "file", "record")
                },
            }
            for number, (at, k) in enumerate(judged)
        ]
        index = _frame(prompts, "prompt_index")
        if index.height:
            turns = [[{"role": "user", "content": of[key]}] for key in prompt_ids]
            index = index.with_columns(ids.split_keys(pl.Series(turns, dtype=ids.MESSAGES)))
        texts.write(
            self.step("text"),
            [],
            prompts=index,
            completions=_frame(completions, "completion_index"),
            judgments=_frame(judgments, "judgments"),
        )
        return self

    def read(self, seen: Sequence[Observation], sources: Sequence[str] = raw.SOURCES, name: str = "raw") -> "Folder":
        """The text folder of observations, through files."""
        return self.read_files(raw.write(self.path / name, seen), sources)

    def read_files(self, files: Mapping[str, Sequence[str]], sources: Sequence[str] = raw.SOURCES) -> "Folder":
        """The text folder of raw files by source."""
        given = {}
        for source in (source for source in sources if source in files):
            given[source] = self.step(f"read-{source}")
            read = partial(ingest, given[source], chunks=self.path / "chunks", source=source)
            self.counts[f"read:{source}"] = read(files={"raw": list(files[source])})
        self.counts["collect"] = collect(given, self.step("text"))
        return self

    def cleaned(self, operation: Any, **parameters: Any) -> "Folder":
        """The text folder after an operation."""
        before, out = self.path / "text", self.step("cleaned")
        self.counts["clean"] = operation({"text": before}, out, **parameters)
        shutil.rmtree(before)
        out.rename(before)
        for path in [path for path in _HELD if path.parent == out]:
            _HELD[before / path.name] = _HELD.pop(path)
        return self

    def rated(self, **parameters: Any) -> "Folder":
        self.counts["rate"] = rate({"text": self.path / "text"}, self.step("rate"), **parameters)
        return self

    def shaped(self, table: str, *, test: float = 0.0, validation: float = 0.0, **parameters: Any) -> Rows:
        """Split and shape; the rows as they are published."""
        self.table = table
        text = self.path / "text"
        split({"text": text}, self.step("split"), test=test, validation=validation)
        inputs = {"rate": self.path / "rate", "split": self.path / "split", "text": text}
        out = self.step("shape")
        self.counts["shape"] = SHAPES[table](inputs, out, **{"sources": list(raw.SOURCES), **parameters})
        return self.rows("shape")

    def weighed(self, **parameters: Any) -> Rows:
        inputs = {name: self.path / name for name in ("shape", "text", "rate")}
        self.counts["weigh"] = weigh(inputs, self.step("weigh"), table=self.table, **parameters)
        return self.rows("weigh")

    def rows(self, step: str) -> Rows:
        """The rows of a step as they are published, but for their texts."""
        found = tables.read(self.path / step / "rows.parquet", f"{self.table}_rows")
        return identified(found, self.path / "text", self.path / "rate", self.table)

    def answers(self) -> Rows:
        """rated.parquet with ids."""
        rows = tables.read(self.path / "rate" / "rated.parquet", "rated")
        return identified(rows, self.path / "text")

    def compared(self) -> Rows:
        """compared.parquet with ids."""
        rows = tables.read(self.path / "rate" / "compared.parquet", "compared")
        return identified(rows, self.path / "text")

    def judgments(self) -> Rows:
        """The judgments of the text folder with ids."""
        return identified(texts.read(self.path / "text", "judgments"), self.path / "text")

    def quarantine(self, *steps: str) -> Rows:
        """What steps refused."""
        paths = [self.path / step / "quarantine.parquet" for step in steps]
        there = [path for path in paths if path in _HELD or path.is_file()]
        return [row for path in there for row in tables.read(path, "quarantine").to_dicts()]


def in_memory() -> AbstractContextManager[Any]:
    """While it lasts, tables of folders in memory are not written."""
    return mock.patch.multiple(tables, write=_keep, write_stream=_keep_parts, read=_kept, scan=_kept_lazily)


def _keep(frame: pl.DataFrame, path: Path, name: str, *, published: bool = False) -> Path:
    if _IN_MEMORY.isdisjoint(path.parents):
        return _write(frame, path, name, published=published)
    if any(folder.name == "chunks" for folder in path.parents):  # chunks are told by their bytes
        tables.conform(frame, name).write_parquet(path, compression="uncompressed")
    else:
        _HELD[path] = tables.conform(frame, name)
    return path


def _keep_parts(frames: Iterable[pl.DataFrame], path: Path, name: str) -> None:
    if _IN_MEMORY.isdisjoint(path.parents):
        return _write_stream(frames, path, name)
    _HELD[path] = pl.concat([tables.empty(name), *(tables.conform(frame, name) for frame in frames)])
    return None


def _kept(path: Path, name: str, columns: list[str] | None = None, where: pl.Expr | bool = True) -> pl.DataFrame:
    if path not in _HELD:
        return _read(path, name, columns, where)
    held = _HELD[path].filter(where)
    return held if columns is None else held.select(columns)


def _kept_lazily(path: Path | list[Path], name: str) -> pl.LazyFrame:
    return _HELD[path].lazy() if isinstance(path, Path) and path in _HELD else _scan(path, name)


def identified(rows: pl.DataFrame, text: Path, rate: Path | None = None, table: str = "") -> Rows:
    """Rows by row numbers → dicts with ids and lineage."""
    if table == "paired" and rate is not None:
        rows = texts.with_judgments(rows, texts.behind(rate))
    rows = texts.identify(rows, texts.names(text)).with_columns(pl.col(pl.Categorical).cast(pl.String))
    return rows.to_dicts()


def _frame(rows: Iterable[Mapping[str, Any]], table: str) -> pl.DataFrame:
    held = list(rows)
    return tables.conform(pl.DataFrame(held, infer_schema_length=None), table) if held else tables.empty(table)


def close(found: float | None, wanted: Fraction | None) -> bool:
    """Whether a float is what a fraction says, but for the last digits of a sum."""
    if found is None or wanted is None:
        return found is None and wanted is None
    return abs(found - wanted) <= Fraction(1, 10**12) * max(1, abs(wanted))
