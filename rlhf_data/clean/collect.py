"""Bring the sources of a spec together: each prompt and completion once, every judgment kept, all by row number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from rlhf_data import ids, texts
from rlhf_data.accounting import Count
from rlhf_data.texts import Chunk

FEW = pl.Categorical()


def collect(inputs: dict[str, Path], out: Path) -> list[Count]:
    """Chunks → a text folder; where two sources hold the same text, the first of the spec names it.

    Args:
        inputs: what the sources gave (chunks.json), in the spec's order of sources.
        out: gets prompts, completions and judgments.
    """
    chunks = [chunk for folder in inputs.values() for chunk in texts.chunks_of(folder)]
    prompts, prompt_rows = _prompts(chunks)
    completions, completion_rows = _completions(chunks, prompt_rows)
    judgments = _judgments(chunks, completion_rows, completions["prompt_row"])
    sources = completions.select("completion_row", "source")
    texts.write(out, chunks, prompts=prompts, completions=completions, judgments=judgments)
    held = [chunk.source for chunk in chunks]
    return [
        _merged("prompts", prompt_rows, prompts.height, held),
        _merged("completions", completion_rows, sources.height, held),
    ]


def _prompts(chunks: Sequence[Chunk]) -> tuple[pl.DataFrame, list[np.ndarray]]:
    """Each prompt once, sorted by id; and for each chunk the row of each of its prompts."""
    stacked = _stacked(chunks, "prompts", ["prompt_id", "split_key"])
    ordered = stacked.sort("prompt_id", maintain_order=True)
    first = ordered["prompt_id"].is_first_distinct() if ordered.height else pl.Series([], dtype=pl.Boolean)
    rows = _cut((first.cum_sum() - 1).cast(pl.UInt32), ordered["_all"], chunks, stacked["chunk"])
    kept = ordered.filter(first).with_row_index("prompt_row")
    return kept.select("prompt_row", "prompt_id", "split_key", "chunk", "place"), rows


def _completions(chunks: Sequence[Chunk], prompt_rows: Sequence[np.ndarray]) -> tuple[pl.DataFrame, list[np.ndarray]]:
    """Each completion once, sorted by prompt and id; and for each chunk the row of each of its completions."""
    stacked = _stacked(chunks, "completions", ["completion_id", "prompt_row", "category", "model"])
    named = [rows[local] for rows, local in zip(prompt_rows, _local(stacked, "prompt_row", chunks), strict=True)]
    sources = pl.Series([chunk.source for chunk in chunks], dtype=pl.String).cast(FEW)
    stacked = stacked.with_columns(
        pl.Series("prompt_row", np.concatenate([*named, np.empty(0, np.uint32)]), dtype=pl.UInt32),
        pl.col("category", "model").cast(FEW),
        source=sources.gather(stacked["chunk"]) if chunks else pl.Series([], dtype=FEW),
    )
    ordered = stacked.sort("prompt_row", "completion_id", maintain_order=True)
    same = (ordered["completion_id"] == ordered["completion_id"].shift(1)).fill_null(False)
    run = ((~same).cum_sum() - 1).cast(pl.UInt32)
    rows = _cut(run, ordered["_all"], chunks, stacked["chunk"])
    kept = ordered.filter(~same).with_row_index("completion_row")
    if same.any() and kept["model"].null_count():  # a model that only a later source names is taken from there
        later = ordered.with_columns(completion_row=run).drop_nulls("model").unique("completion_row", keep="first")
        found = kept.join(later.select("completion_row", _model="model"), on="completion_row", how="left")
        kept = found.sort("completion_row").with_columns(model=pl.coalesce("model", "_model"))
    kept = kept.with_columns(ids.bits(kept["completion_id"]).alias("bits"))
    columns = ["completion_row", "completion_id", "bits", "prompt_row", "source", "category", "model", "chunk", "place"]
    return kept.select(columns), rows


def _judgments(chunks: Sequence[Chunk], completion_rows: Sequence[np.ndarray], prompt_row: pl.Series) -> pl.DataFrame:
    """The judgments of all chunks by the rows of what they judge, in the order of those."""
    parts = []
    for chunk, rows, observed in zip(chunks, completion_rows, texts.read_chunks(chunks, "observed"), strict=True):
        number = pl.Series("row", rows, dtype=pl.UInt32)
        parts.append(
            observed.with_columns(
                number.gather(observed["completion_row"]).alias("completion_row"),
                number.gather(observed["other_row"]).alias("other_row"),
                pl.col("kind", "aspect", "annotator", "position", "file").cast(FEW),
                pl.col("record") + pl.lit(chunk.start, dtype=pl.UInt32),
                source=pl.lit(chunk.source, dtype=FEW),
            )
        )
    if not parts:
        raise ValueError("no source gave anything")
    ordered = pl.concat(parts).sort("completion_row", maintain_order=True)
    return ordered.with_columns(prompt_row.gather(ordered["completion_row"]).alias("prompt_row")).with_row_index(
        "judgment_row"
    )


def _stacked(chunks: Sequence[Chunk], part: str, columns: list[str]) -> pl.DataFrame:
    """A table of every chunk, one below the other: chunk, place in it, and `_all`, the place in the whole."""
    frames = [
        frame.with_row_index("place").with_columns(chunk=pl.lit(k, dtype=pl.UInt32))
        for k, frame in enumerate(texts.read_chunks(chunks, part, columns))
    ]
    return pl.concat(frames).with_row_index("_all")


def _local(stacked: pl.DataFrame, column: str, chunks: Sequence[Chunk]) -> list[np.ndarray]:
    """A column of a stacked table, by chunk."""
    return np.split(stacked[column].to_numpy(), _ends(stacked["chunk"], chunks))


def _cut(row: pl.Series, place: pl.Series, chunks: Sequence[Chunk], chunk: pl.Series) -> list[np.ndarray]:
    """Row numbers, given at places of the whole, in the order of the whole and by chunk."""
    numbers = np.empty(len(row), np.uint32)
    numbers[place.to_numpy()] = row.to_numpy()
    return np.split(numbers, _ends(chunk, chunks))


def _ends(chunk: pl.Series, chunks: Sequence[Chunk]) -> np.ndarray:
    """Where in the whole one chunk ends and the next begins."""
    return np.searchsorted(chunk.to_numpy(), np.arange(1, len(chunks)))


def _merged(unit: str, rows: Sequence[np.ndarray], out: int, held: Sequence[str]) -> Count:
    """How many there are, and how many came again: in a later piece of the same source, or in another source."""
    rows_in = sum(map(len, rows))
    within = 0
    for source in dict.fromkeys(held):
        there = np.zeros(out, bool)
        own = [part for name, part in zip(held, rows, strict=True) if name == source]
        for part in own:
            there[part] = True
        within += sum(map(len, own)) - int(np.count_nonzero(there))
    merged = {"in several pieces of a source": within, "in several sources": rows_in - out - within}
    return Count("collect", unit, rows_in, out, merged={reason: n for reason, n in merged.items() if n})
