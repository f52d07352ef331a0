"""The figures of a table: histograms, quantiles, groups. Polars aggregates; nothing here loops over rows."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl

from rlhf_data.report.display import label, short

DISTINCT = 12  # a column with no more values than this gets a bar for each value
GROUPS = 30


class Bin(NamedTuple):
    """One bar of a histogram: what it holds, as words, and how many."""

    words: str
    n: int
    share: float


class Histogram(NamedTuple):
    """A histogram ready to be drawn.

    Attributes:
        title: what is counted.
        bins: the bars, left to right.
        ticks: labels under the axis: one for each bar where `by_value`, else one for each edge.
        by_value: each bar is one value.
        open_low, open_high: the outermost bar holds also what lies beyond its edge.
        stats: name and figure of the usual statistics.
        kind: which colour it has.
        top: the largest share, of all histograms drawn to the same scale.
    """

    title: str
    bins: list[Bin]
    ticks: list[str]
    by_value: bool
    open_low: bool
    open_high: bool
    stats: dict[str, Any]
    kind: str
    top: float


class Edges(NamedTuple):
    """Where bars begin and end; `values` in place of edges where each value has its bar."""

    values: list[float] | None
    first: float = 0.0
    step: float = 1.0
    n: int = 1


def has(rows: pl.DataFrame, *columns: str) -> bool:
    """Whether every column is there and holds a value."""
    return all(c in rows.columns and rows[c].null_count() < rows.height for c in columns)


def histograms(columns: dict[str, pl.Series], kinds: tuple[str, ...] = ("",)) -> list[Histogram]:
    """One histogram per column, all with the same bars and the same scale; columns without a value are left out."""
    finite = {
        title: values.cast(pl.Float64).drop_nulls().filter(values.cast(pl.Float64).drop_nulls().is_finite())
        for title, values in columns.items()
    }
    finite = {title: values for title, values in finite.items() if values.len()}
    if not finite:
        return []
    edges = _edges(pl.concat([values.alias("v") for values in finite.values()]))
    counted = {title: _counts(values, edges) for title, values in finite.items()}
    top = max(max(ns) / sum(ns) for ns in counted.values())
    colour = dict(zip(columns, kinds * len(columns), strict=False))
    return [
        _histogram(title, counted[title], edges, values, columns[title].null_count(), colour[title], top)
        for title, values in finite.items()
    ]


def stats(values: pl.Series) -> dict[str, Any]:
    """The usual statistics of a column that has a value; nulls are left out."""
    return {
        "mean": values.mean(),
        "sd": values.std() if values.len() > 1 else None,
        "min": values.min(),
        "median": values.median(),
        "max": values.max(),
    }


def quantiles(values: pl.Series) -> dict[str, Any]:
    values = values.drop_nulls()
    marks = {"5 %": 0.05, "median": 0.5, "95 %": 0.95}
    return {
        "mean": values.mean(),
        **{words: values.quantile(q, "linear") for words, q in marks.items()},
        "max": values.max(),
    }


def groups(rows: pl.DataFrame, by: str, figures: dict[str, pl.Expr]) -> list[dict[str, Any]]:
    """`figures` for each value of `by`, the largest group first; beyond a number of groups the rest is one line.

    Args:
        rows: the table.
        by: the column; null is a group too.
        figures: name → aggregate.

    Returns:
        dicts of `name` (None for null), `rows`, `share` and the figures.
    """
    sizes = rows.group_by(by).agg(_rows=pl.len()).sort("_rows", by, descending=[True, False], nulls_last=True)
    kept = sizes[by].head(GROUPS if sizes.height > GROUPS + 1 else GROUPS + 1)
    rest = sizes.height - kept.len()
    places = pl.DataFrame({by: kept, "_place": pl.int_range(kept.len(), eager=True)})
    placed = rows.join(places, on=by, how="left", nulls_equal=True).with_columns(pl.col("_place").fill_null(kept.len()))
    found = placed.group_by("_place").agg(pl.col(by).first(), rows=pl.len(), **figures).sort("_place")
    lines = []
    for line in found.to_dicts():
        value, place = line.pop(by), line.pop("_place")
        name = f"{rest} more" if place == kept.len() else None if value is None else label(value)
        lines.append({"name": name, "share": line["rows"] / rows.height, **line})
    return lines


def parts(**counts: int) -> list[dict[str, Any]]:
    """The parts of a whole with their shares; parts of nothing are left out."""
    whole = sum(counts.values())
    return [{"kind": kind, "n": n, "share": n / whole} for kind, n in counts.items() if n]


def round_step(span: float, wanted: int) -> float:
    """The step of 1, 2 or 5 · 10ⁿ that cuts `span` into at most about `wanted` parts."""
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _edges(values: pl.Series) -> Edges:
    if values.n_unique() <= DISTINCT:
        return Edges(values.unique().sort().to_list())
    low, high = (float(values.quantile(q, "linear") or 0.0) for q in (0.01, 0.99))
    if high - low <= 1e-12 * max(abs(low), abs(high), 1.0):  # almost all are one value: show the whole span
        low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    step = round_step(max(high - low, 1e-300), DISTINCT)
    first = math.floor(low / step) * step
    return Edges(None, first, step, max(1, math.ceil((high - first) / step - 1e-9)))


def _counts(values: pl.Series, edges: Edges) -> list[int]:
    if edges.values is not None:
        found = dict(values.rename("v").value_counts().iter_rows())
        return [found.get(v, 0) for v in edges.values]
    place = ((values - edges.first) / edges.step + 1e-9).floor().clip(0, edges.n - 1).cast(pl.Int64).rename("v")
    found = dict(place.value_counts().iter_rows())
    return [found.get(k, 0) for k in range(edges.n)]


def _histogram(
    title: str, ns: list[int], edges: Edges, values: pl.Series, nulls: int, kind: str, top: float
) -> Histogram:
    whole = sum(ns)
    told = {"rows": whole, **({"null": nulls} if nulls else {}), **stats(values)}
    if edges.values is not None:
        ticks = [short(v) for v in edges.values]
        bins = [Bin(tick, n, n / whole) for tick, n in zip(ticks, ns, strict=True)]
        return Histogram(title, bins, ticks, True, False, False, told, kind, top)
    ticks = [short(edges.first + k * edges.step) for k in range(edges.n + 1)]
    open_low, open_high = (
        told["min"] < edges.first - 1e-9,
        told["max"] > edges.first + edges.n * edges.step * (1 + 1e-9),
    )
    words = [f"{low} to {high}" for low, high in pairwise(ticks)]
    words[0] = f"below {ticks[1]}" if open_low else words[0]
    words[-1] = f"{ticks[-2]} and more" if open_high else words[-1]
    bins = [Bin(w, n, n / whole) for w, n in zip(words, ns, strict=True)]
    return Histogram(title, bins, ticks, False, open_low, open_high, told, kind, top)
