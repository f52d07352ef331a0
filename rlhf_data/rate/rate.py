"""The step `rate`: judgments become rated answers and compared pairs."""

from pathlib import Path

import polars as pl

from rlhf_data import tables, texts
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals
from rlhf_data.rate import ratings, votes

# Which judgments each way of rating hears; without `by`, every kind is heard in its own way.
KINDS = {
    "rating": ("rating", "demonstration"),
    "aspects": ("rating", "demonstration"),
    "votes": ("comparison",),
    "rank": ("rank",),
    "label": ("label", "demonstration"),
}


def rate(
    inputs: dict[str, Path],
    out: Path,
    *,
    by: str | None = None,
    scale: tuple[float, float] | None = None,
    aspects: dict[str, float] | None = None,
    method: str = "mean",
) -> list[Count]:
    """Judgments → rated.parquet and compared.parquet.

    Args:
        inputs: one folder with completions and judgments.
        out: gets the two tables, and quarantine for ratings that cannot be used.
        by: a key of KINDS; judgments of other kinds are filtered.
        scale: (lowest, highest) legal rating; others are refused as `rating.out_of_scale`.
        aspects: weight of each aspect; an answer that lacks one is refused as `aspect.missing`.
        method: how votes on one pair add up, a name of votes.METHODS.

    Raises:
        ValueError: ratings of several aspects and no `aspects` to say how they combine.
    """
    (folder,) = inputs.values()
    judgments = texts.read(folder, "judgments")
    heard, filtered = _heard(judgments, by, aspects)
    refused: list[Refusal] = []
    if scale is not None:
        wrong = ratings.out_of_scale(scale)
        off = heard.filter(wrong)
        refused.append(Refusal("rating.out_of_scale", off, f"the declared scale is {scale[0]:g} to {scale[1]:g}"))
        heard = heard.filter(~wrong)
    usable = heard.height
    if aspects:
        heard, incomplete = ratings.combine_aspects(heard, aspects)
        refused.append(Refusal("aspect.missing", incomplete, f"an answer needs all of: {', '.join(aspects)}"))
        usable -= incomplete.height
    answers = heard.filter(pl.col("kind") != "comparison")
    rated = ratings.rate_answers(answers, scale=scale)
    compared = votes.compare(heard.filter(pl.col("kind") == "comparison"), method=method)
    tables.write(rated, out / "rated.parquet", "rated")
    tables.write(compared, out / "compared.parquet", "compared")
    tables.write(refusals(refused, "rate", folder), out / "quarantine.parquet", "quarantine")
    merged = usable - rated.height - compared.height
    return [
        Count(
            "rate",
            "judgments",
            judgments.height,
            rated.height + compared.height,
            merged={"into one row per answer or pair": merged} if merged else {},
            quarantined={r.code: r.rows.height for r in refused if r.rows.height},
            filtered=filtered,
        )
    ]


def _heard(
    judgments: pl.DataFrame, by: str | None, aspects: dict[str, float] | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The judgments that count, and how many do not, by reason."""
    kind = pl.col("kind").cast(pl.String)
    heard, filtered = judgments, {}
    if by is not None:
        heard = judgments.filter(kind.is_in(KINDS[by]))
        left = judgments.filter(~kind.is_in(KINDS[by])).group_by(kind).len().sort("kind")
        filtered = {f"{name}, and rate is by {by}": n for name, n in left.iter_rows()}
    rated = heard.filter(kind == "rating")["aspect"]
    named = sorted(rated.drop_nulls().unique().cast(pl.String).to_list())
    if aspects:
        absent = [a for a in aspects if a not in named]
        if absent:
            raise ValueError(f"rate.aspects: no aspect named {', '.join(absent)}; the sources rate {', '.join(named)}")
        unnamed = (kind == "rating") & ~pl.col("aspect").cast(pl.String).is_in(list(aspects)).fill_null(False)
        filtered |= {"aspect not named in rate.aspects": heard.filter(unnamed).height}
        heard = heard.filter(~unnamed)
    elif len(named) > 1:
        raise ValueError(
            f"the sources rate {len(named)} aspects ({', '.join(named)}): say how they combine, "
            f"such as rate: {{by: aspects, aspects: {{{named[0]}: 1, {named[1]}: 1}}}}"
        )
    return heard, {reason: n for reason, n in filtered.items() if n}
