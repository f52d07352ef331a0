"""Decontamination: which texts share a run of words with files that models are evaluated on."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlhf_data.clean.ngrams import listed, word_ngrams, words

NGRAM = 13  # words; Brown et al. 2020, arXiv:2005.14165, appendix C
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_CHARACTERS = 1 << 20  # of texts hashed at once: some 100 MB
_CELLS = 1 << 20  # characters that a field of a CSV file may hold; a whole document stands in some


class Index(NamedTuple):
    """What is looked for: the runs of words of evaluation files, hashed; 12 bytes a run.

    Attributes:
        ngram: words in a run; a text of fewer words is a run by itself.
        files: names of the files.
        hashes: (runs,) UInt64, sorted.
        file_of: (runs,) UInt32 into `files`; a run of two files stands twice.
    """

    ngram: int
    files: list[str]
    hashes: NDArray[np.uint64]
    file_of: NDArray[np.uint32]


def index(paths: Sequence[Path], ngram: int = NGRAM) -> Index:
    """Every run of `ngram` words in any text of the files.

    Args:
        paths: .jsonl, .json, .csv, .tsv, .parquet or .txt files; every text in them counts, whatever its column or
            key: questions, choices, answers.
        ngram: words in a run, at least 1.

    Raises:
        ValueError: a file of another kind, or one that cannot be read.
    """
    found = []
    for path in paths:
        runs = np.zeros(0, dtype=np.uint64)
        for texts in _batches(leaves(path)):
            runs = np.union1d(runs, word_ngrams(texts, ngram).hashes)
        found.append(runs)
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *found])
    file_of = np.repeat(np.arange(len(found), dtype=np.uint32), [runs.size for runs in found])
    order = np.argsort(hashes, kind="stable")
    return Index(ngram, [path.name for path in paths], hashes[order], file_of[order])


def hits(texts: pl.Series | Sequence[str], index: Index, *, whole: bool = True) -> pl.DataFrame:
    """The texts that hold a run of words of an evaluation file.

    Args:
        texts: texts, normalised here.
        index: of the evaluation files.
        whole: whether a text of fewer words than a run counts when it is, as a whole, a text of a file. Good for
            prompts; of answers it would take every "Yes" for a leaked one.

    Returns:
        row (UInt32, into `texts`), file (String); one row for each text and file, sorted by row.
    """
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    start = 0
    for batch in _batches(iter(listed(texts))):
        hashed = word_ngrams(batch, index.ngram)
        rows = np.repeat(np.arange(len(batch)), np.diff(hashed.offsets))
        hashes = hashed.hashes
        if not whole:
            long = (np.diff(words(batch).offsets) >= index.ngram)[rows]
            rows, hashes = rows[long], hashes[long]
        first = np.searchsorted(index.hashes, hashes, side="left")
        files = np.searchsorted(index.hashes, hashes, side="right") - first
        nth = np.arange(files.sum()) - np.repeat(np.cumsum(files) - files, files)
        file = index.file_of[np.repeat(first, files) + nth].astype(np.int64)
        pairs.append(np.unique(np.stack([np.repeat(rows, files) + start, file], axis=1), axis=0))
        start += len(batch)
    found = np.concatenate(pairs)
    names = pl.Series("file", index.files, dtype=pl.String)
    return pl.DataFrame({"row": pl.Series(found[:, 0], dtype=pl.UInt32), "file": names.gather(found[:, 1])})


def leaves(path: Path) -> Iterator[str]:
    """Every text in a file: every string of its JSON, every cell; of a text file the whole, and each line.

    Raises:
        ValueError: a file of another kind, or one that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: cannot look for texts in a file of this kind; use one of {', '.join(SUFFIXES)}")
    try:
        yield from _READ[suffix](path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _json(path: Path) -> Iterator[str]:
    yield from _strings(json.loads(path.read_text(encoding="utf-8-sig")))


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                yield from _strings(json.loads(line))


def _csv(path: Path) -> Iterator[str]:
    csv.field_size_limit(max(csv.field_size_limit(), _CELLS))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ","):
            yield from row


def _parquet(path: Path) -> Iterator[str]:
    for frame in pl.scan_parquet(path, glob=False).collect_batches(chunk_size=10_000, maintain_order=True):
        for row in frame.iter_rows():
            yield from _strings(row)


def _text(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8-sig")
    yield text
    yield from text.splitlines()


_READ = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".txt": _text}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts of some million characters each."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
