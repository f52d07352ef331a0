"""The step `weigh`: what is in the mix, and source × category × row × class factors that end in one `weight`."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals
from rlhf_data.weigh.mix import mix
from rlhf_data.words import hint

SIDES = {"paired": ["chosen_row", "rejected_row"], "unpaired": ["completion_row"]}
# What a table of learnt weights may be keyed by.
KEYS = {
    "paired": ("pair_id", "prompt_id", "chosen_id", "source", "category"),
    "unpaired": ("completion_id", "prompt_id", "source", "category"),
}
# How the columns of a table of learnt weights that is text are told apart; any other is Parquet.
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def weigh(
    inputs: dict[str, Path],
    out: Path,
    *,
    table: str,
    seed: int = 0,
    keep: dict[str, float] | None = None,
    rows: dict[str, int] | None = None,
    share: dict[str, float] | None = None,
    temperature: float | None = None,
    of: str = "rows",
    count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
    source: dict[str, float] | None = None,
    category: dict[str, float] | None = None,
    label: dict[bool, float] | None = None,
    row: str | None = None,
    learnt: dict[str, Any] | None = None,
    clip: float | None = None,
    normalize: str | None = None,
) -> list[Count]:
    """rows.parquet → the rows of the mix, with `weight` = the product of the factors given.

    Args:
        inputs: "shape" (rows), "text" and "rate", which they are of.
        out: gets rows.parquet, mix.json (rows of the train split by source, before the mix) and quarantine: rows whose
            weight is not finite and at least 0 are refused as `weight.invalid`, those without a learnt weight as
            `weight.missing`.
        table: "paired" or "unpaired".
        seed: of the keyed hash that draws rows.
        keep: see `mix.mix`; so are
        rows: its `most`,
        share: and
        temperature: shares are
        of: "rows" or "tokens" (of the completions).
        count_tokens: texts → their numbers of tokens; where `of` is tokens.
        source: factor by source; a source that is not named has factor 1.
        category: factor by category, likewise; of one that no row has a note is made.
        label: factor by label (unpaired only).
        row: an expression in polars' SQL over the table's narrow columns, such as "margin".
        learnt: a table of weights learnt elsewhere: path, key (one of KEYS), column, missing (a weight, or null to
            refuse the row).
        clip: the largest weight.
        normalize: "mean_one" divides by the mean over the train split, after clipping.

    Raises:
        ValueError: `row` cannot be computed of a row, there is no train weight to normalise, shares that cannot be
            had, or a table of weights that cannot be read.
    """
    name, text = f"{table}_rows", inputs["text"]
    pairs_from = inputs["rate"] if table == "paired" else None
    whole = tables.read(inputs["shape"] / "rows.parquet", name)
    stays, left_out = pl.repeat(True, whole.height, eager=True), {}
    if keep or rows or share or temperature:
        sizes = pl.repeat(1.0, whole.height, eager=True) if of == "rows" else _tokens(whole, table, text, count_tokens)
        lots = ids.keyed_hash(_key(whole, table, text), "mix", seed)
        stays, left_out = mix(whole, lots, sizes, keep=keep, most=rows, share=share, temperature=temperature)
    mixed = whole.filter(stays)
    factor = _factor("source", source) * _factor("category", category) * _factor("label", label)
    if row is not None:
        factor = factor * pl.sql_expr(row).cast(pl.Float64)
    try:
        told = mixed.with_columns(pl.col(pl.Categorical).cast(pl.String))  # text is text to who writes an expression
        weighed = mixed.with_columns(told.with_columns(weight=factor)["weight"])
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"weigh.weight.row: {row}: {str(error).splitlines()[0]}") from None
    refused: list[Refusal] = []
    notes = _nowhere(category or {}, whole["category"])
    if learnt is not None:
        missing, given = learnt["missing"], {name: learnt[name] for name in ("path", "key", "column")}
        found = _learnt(weighed, table, text, **given)
        if missing is not None:
            if weighed.height and found.is_null().all():
                notes.append(
                    f"weigh.weight.table: {learnt['path']} has no row's {learnt['key']}; each weighs {missing:g}"
                )
            found = found.fill_null(missing)
        absent = weighed.filter(found.is_null())
        refused.append(Refusal("weight.missing", absent, f"{learnt['path']} has no weight for its {learnt['key']}"))
        weighed = weighed.with_columns(pl.col("weight") * found).filter(found.is_not_null())
    valid = (pl.col("weight").is_finite() & (pl.col("weight") >= 0.0)).fill_null(False)
    refused.append(Refusal("weight.invalid", weighed.filter(~valid), "a weight must be finite and at least 0"))
    kept = weighed.filter(valid)
    if clip is not None:
        kept = kept.with_columns(pl.col("weight").clip(upper_bound=clip))
    if normalize == "mean_one":
        kept = kept.with_columns(pl.col("weight") / _train_mean(kept))
    tables.write(kept, out / "rows.parquet", name)
    (out / "mix.json").write_text(json.dumps(_by_source(whole)))
    tables.write(refusals(refused, "weigh", text, pairs_from), out / "quarantine.parquet", "quarantine")
    quarantined = {r.code: r.rows.height for r in refused if r.rows.height}
    return [Count("weigh", "rows", whole.height, kept.height, quarantined=quarantined, filtered=left_out, notes=notes)]


def _nowhere(factors: Iterable[str], categories: pl.Series) -> list[str]:
    """What to say of factors that multiply nothing: a misspelt category looks like one without rows."""
    known = categories.unique().drop_nulls().cast(pl.String).sort().to_list()
    there = f"; there are {', '.join(known[:8])}{' …' if len(known) > 8 else ''}" if known else ""
    unused = [name for name in factors if name not in known]
    return [f"weigh.weight.category: no row is of {name!r}{hint(name, known, ': ') or there}" for name in unused]


def _by_source(rows: pl.DataFrame) -> dict[str, int]:
    train = rows.filter(pl.col("split") == "train")
    return dict(train.group_by(pl.col("source").cast(pl.String)).len().sort("source").iter_rows())


def _key(rows: pl.DataFrame, table: str, text: Path) -> pl.Series:
    """The id of each row: pair_id or completion_id."""
    known = texts.read(text, "completions", ["completion_row", "completion_id"])
    sides = [texts.looked_up(rows[side], known, "completion_id") for side in SIDES[table]]
    return ids.pair_ids(sides[0], sides[1], "pair_id") if table == "paired" else sides[0]


def _tokens(
    rows: pl.DataFrame, table: str, text: Path, count_tokens: Callable[[Sequence[str]], list[int]] | None
) -> pl.Series:
    """How many tokens the completions of each row have."""
    if count_tokens is None:
        raise ValueError("weigh.of: tokens needs a tokenizer")
    held = texts.completion_texts(text, pl.concat(rows[side] for side in SIDES[table]))
    counted = held.select("completion_row", n=pl.Series(count_tokens(held["completion"].to_list()), dtype=pl.Float64))
    first, *others = (texts.looked_up(rows[side], counted, "n") for side in SIDES[table])
    return sum(others, start=first)


def _learnt(rows: pl.DataFrame, table: str, text: Path, *, path: str, key: str, column: str) -> pl.Series:
    """The weight that a table gives each row; null where it has none."""
    try:  # of a CSV all is text: an id is no number, and a weight may be 1 in the first rows
        written = SEPARATORS.get(Path(path).suffix.lower())
        given = pl.read_csv(path, infer_schema=False, separator=written) if written else pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"weigh.weight.table: {path}: cannot be read: {str(error).splitlines()[0]}") from None
    absent = [name for name in (key, column) if name not in given.columns]
    if absent:
        raise ValueError(
            f"weigh.weight.table: {path} has no column {', '.join(absent)}; it has {', '.join(given.columns)}"
        )
    kind, numbers = given.schema[column], given[column].cast(pl.Float64, strict=False)
    unread = given[column].filter(numbers.is_null() & given[column].is_not_null())
    if not (kind.is_numeric() or (kind == pl.String and written)) or len(unread):
        what = repr(unread[0]) if len(unread) else kind
        raise ValueError(f"weigh.weight.table: {path}: {column} is {what}, not a number")
    twice = given.filter(pl.col(key).is_duplicated())[key].unique().sort()
    if len(twice):
        raise ValueError(
            f"weigh.weight.table: {path}: {len(twice)} of its keys stand twice, such as {key} = {twice[0]}"
        )
    if key in ("source", "category"):
        asked = rows[key].cast(pl.String)
    elif key in ("pair_id", "completion_id"):
        asked = _key(rows, table, text)
    else:
        asked = texts.identify(rows.select(f"{key.removesuffix('_id')}_row"), texts.names(text))[key]
    weights = given.select(pl.col(key).cast(pl.String), numbers.alias("_weight"))
    return asked.alias(key).to_frame().join(weights, on=key, how="left", maintain_order="left")["_weight"]


def _factor(column: str, factors: dict | None) -> pl.Expr:
    if not factors:
        return pl.lit(1.0)
    value = pl.col(column).cast(pl.String) if column != "label" else pl.col(column)
    return value.replace_strict(factors, default=1.0, return_dtype=pl.Float64)


def _train_mean(rows: pl.DataFrame) -> float:
    mean = rows.filter(pl.col("split") == "train")["weight"].sort().mean()
    if not isinstance(mean, float) or mean == 0.0:
        raise ValueError("weigh.weight.normalize: no train row has a weight over 0, so their mean cannot be made one")
    if not math.isfinite(mean):
        raise ValueError(
            "weigh.weight.normalize: the mean of the train weights is beyond floats; write smaller factors"
        )
    return mean
