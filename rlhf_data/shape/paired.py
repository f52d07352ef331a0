"""The step `shape` to the paired table: compared pairs as they are given, rated answers by a strategy."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count, summed
from rlhf_data.shape.pairing import propose, rows_of
from rlhf_data.shape.precedence import by_precedence

AS_GIVEN = "as_given"
PART = 250_000  # rows of rated answers and compared pairs that are in hand at once
RATED = ["prompt_row", "completion_row", "source", "reward", "votes"]
COMPARED = ["prompt_row", "chosen_row", "rejected_row", "source", "preference", "votes"]
ANSWERS = ["completion_row", "bits", "category"]


def to_paired(
    inputs: dict[str, Path],
    out: Path,
    *,
    pairing: str = "best_vs_worst",
    min_margin: float = 0.0,
    max_pairs_per_prompt: int | None = None,
    ties: str = "drop",
    seed: int = 0,
    sources: list[str] | None = None,
) -> list[Count]:
    """Rated and compared → rows.parquet, the paired table by row numbers.

    Compared pairs are taken as given, whatever the strategy; it is for rated answers. Two rows of the same two answers
    are one pair: an earlier source wins over a later one, and in it a compared pair over one made from ratings.

    Args:
        inputs: "rate" (rated, compared), "split" (splits) and "text" (completions).
        out: gets rows.parquet.
        pairing: a name of STRATEGIES, or "as_given" to leave rated answers out.
        min_margin: smallest gap of rewards, for pairs made from ratings.
        max_pairs_per_prompt: at most so many of a prompt's pairs, drawn by keyed hash.
        ties: "drop", or "soft" to keep a tie as preference 0.5.
        seed: of the keyed hashes.
        sources: their names, in the spec's order.
    """
    held = {name: inputs["rate"] / f"{name}.parquet" for name in ("rated", "compared")}
    splits = tables.read(inputs["split"] / "splits.parquet", "splits")
    counts: list[Count] = []

    def parts() -> Iterator[pl.DataFrame]:
        prompt_rows = [tables.read(path, name, ["prompt_row"])["prompt_row"] for name, path in held.items()]
        for of_prompts in _prompt_ranges(*prompt_rows):
            answers = texts.read(inputs["text"], "completions", ANSWERS, of_prompts)
            rows, counted = _part(
                tables.read(held["rated"], "rated", RATED, of_prompts),
                tables.read(held["compared"], "compared", COMPARED, of_prompts),
                answers,
                pairing=pairing,
                min_margin=min_margin,
                most=max_pairs_per_prompt,
                ties=ties,
                seed=seed,
                sources=sources,
            )
            counts.extend(counted)
            category = texts.looked_up(rows["chosen_row"], answers, "category")
            yield rows.with_columns(category, texts.looked_up(rows["prompt_row"], splits, "split"), weight=pl.lit(1.0))

    tables.write_stream(parts(), out / "rows.parquet", "paired_rows")
    return [summed([count for count in counts if count.unit == unit]) for unit in ("candidate pairs", "rated answers")]


def _prompt_ranges(*prompt_rows: pl.Series) -> Iterator[pl.Expr]:
    """Conditions on prompt_row that cut tables into parts of some PART rows; together they take every row once."""
    rows = pl.concat(prompt_rows)
    last = int(rows.max() or 0)  # type: ignore[call-overload]
    step = max(1, -(-(last + 1) * PART // max(1, len(rows))))
    for first in range(0, last + 1, step):
        yield pl.col("prompt_row").is_between(first, first + step - 1)


def _part(
    rated: pl.DataFrame,
    compared: pl.DataFrame,
    answers: pl.DataFrame,
    *,
    pairing: str,
    min_margin: float,
    most: int | None,
    ties: str,
    seed: int,
    sources: list[str] | None,
) -> tuple[pl.DataFrame, list[Count]]:
    """The pairs of some prompts, sorted, and what became of their candidates and answers."""
    kept, filtered = _choose(
        compared.with_columns(margin=pl.lit(None, dtype=pl.Float64)), min_margin=min_margin, ties=ties
    )
    candidates = compared.height
    if pairing != AS_GIVEN:
        usable = rated.filter(pl.col("reward").is_not_null())
        usable = usable.with_columns(texts.looked_up(usable["completion_row"], answers, "bits"))
        proposed = pl.concat(propose(usable, pairing, seed)).with_columns(preference=pl.lit(1.0))
        taken, left = _choose(proposed, min_margin=min_margin, ties=ties)
        made = rows_of(usable, taken)
        kept = pl.concat([kept, made], how="diagonal") if kept.height else made
        filtered = dict(Counter(filtered) + Counter(left))
        candidates += proposed.height
    pairs = kept
    if compared.height or rated["source"].n_unique() > 1:
        unordered = [pl.min_horizontal("chosen_row", "rejected_row"), pl.max_horizontal("chosen_row", "rejected_row")]
        pairs = by_precedence(kept, sources).unique(unordered, keep="first", maintain_order=True)
    merged = kept.height - pairs.height
    if most is not None:
        few = _draw(pairs, answers, most, seed)
        filtered |= {f"over {most} of a prompt": pairs.height - few.height} if few.height < pairs.height else {}
        pairs = few
    counts = [
        Count(
            "shape",
            "candidate pairs",
            candidates,
            pairs.height,
            merged={"the same two answers": merged} if merged else {},
            filtered=filtered,
        ),
        _answers(rated, pairs, pairing),
    ]
    return pairs.sort("prompt_row", "chosen_row", "rejected_row"), counts


def _draw(pairs: pl.DataFrame, answers: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """At most `most` pairs of each prompt, those with the smallest keyed hash of their two answers."""
    sides = [texts.looked_up(pairs[side], answers, "bits") for side in ("chosen_row", "rejected_row")]
    first = ids.keyed_hash(sides[0], "max_pairs_per_prompt", seed)
    lots = ids.keyed_hash(first ^ sides[1], "max_pairs_per_prompt", seed)
    place = pl.struct("_lot", "chosen_row", "rejected_row").rank("ordinal").over("prompt_row")
    return pairs.with_columns(_lot=lots).filter(place <= most).drop("_lot")


def _answers(rated: pl.DataFrame, pairs: pl.DataFrame, pairing: str) -> Count:
    """What became of the rated answers: in a pair, or why not."""
    highest = max(rated["completion_row"].max() or 0, pairs["chosen_row"].max() or 0, pairs["rejected_row"].max() or 0)
    used = np.zeros(int(highest) + 1, bool)  # type: ignore[call-overload]
    for side in ("chosen_row", "rejected_row"):
        used[pairs[side].to_numpy()] = True
    unused = rated.filter(pl.Series(~used[rated["completion_row"].to_numpy()]))
    return Count(
        "shape", "rated answers", rated.height, rated.height - unused.height, filtered=_unused(unused, pairing)
    )


def _choose(candidates: pl.DataFrame, *, min_margin: float, ties: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """The candidates that become pairs, and how many do not, by reason."""
    tie = (pl.col("preference") == 0.5) | (pl.col("margin") == 0.0).fill_null(False)
    # 8/3 − 5/3 is less than 1 in floats: a margin is too small only by more than the last digits.
    close = ~tie & (pl.col("margin") < min_margin * (1.0 - 1e-12)).fill_null(False)
    reason = (
        pl.when(tie & (ties == "drop")).then(pl.lit("tie")).when(close).then(pl.lit(f"margin under {min_margin:g}"))
    )
    judged = candidates.with_columns(
        _reason=reason.otherwise(pl.lit(None, dtype=pl.String)),
        preference=pl.when(tie).then(0.5).otherwise("preference"),
    )
    left = judged.filter(pl.col("_reason").is_not_null())
    return judged.filter(pl.col("_reason").is_null()).drop("_reason"), _by_reason(left["_reason"])


def _unused(unused: pl.DataFrame, pairing: str) -> dict[str, int]:
    if pairing == AS_GIVEN:
        return {"not compared, and pairing is as_given": unused.height} if unused.height else {}
    reason = pl.when(pl.col("reward").is_null()).then(pl.lit("no reward")).otherwise(pl.lit("in no pair"))
    return _by_reason(unused.select(reason.alias("reason"))["reason"])


def _by_reason(reasons: pl.Series) -> dict[str, int]:
    return dict(reasons.alias("reason").to_frame().group_by("reason").len().sort("reason").iter_rows())
