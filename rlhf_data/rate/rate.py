"""The step `rate`: judgments become rated answers and compared pairs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import tables, texts
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals
from rlhf_data.rate import annotators, ratings, scales, votes
from rlhf_data.rate.battles import PRIOR, Rated, by_bradley_terry, by_elo
from rlhf_data.rate.reward_model import DETAIL, Rewarder, reward
from rlhf_data.rate.verifier import DETAILS, find_verifier, verify

# Which judgments each way of rating hears; without `by`, every kind is heard in its own way.
KINDS = {
    "rating": ("rating", "demonstration"),
    "aspects": ("rating", "demonstration"),
    "votes": ("comparison",),
    "rank": ("rank",),
    "label": ("label", "demonstration"),
    "bradley_terry": ("comparison",),
    "elo": ("comparison",),
}
SHOWN = 1000  # annotators named in rating.json, those of most votes first


def rate(
    inputs: dict[str, Path],
    out: Path,
    *,
    by: str | None = None,
    scale: tuple[float, float] | None = None,
    aspects: dict[str, float] | None = None,
    missing: str | float = "refuse",
    normalize: str | None = None,
    per: str = "annotator",
    method: str = "mean",
    of: str = "answer",
    ties: str = "half",
    covariates: Sequence[str] = (),
    prior: Mapping[str, float] | None = PRIOR,
    elo: Mapping[str, Any] | None = None,
    verifier: str | None = None,
    rewarder: Rewarder | None = None,
) -> list[Count]:
    """Judgments → rated.parquet and compared.parquet, and rating.json with what was learned of models and annotators.

    Args:
        inputs: one folder with completions and judgments.
        out: gets the tables, and quarantine for judgments that cannot be used.
        by: a key of KINDS, or verifier, or reward_model; judgments of other kinds are filtered.
        scale: (lowest, highest) legal rating; others are refused as `rating.out_of_scale`.
        aspects: weight of each aspect.
        missing: what becomes of an answer that lacks an aspect, see `ratings.combine_aspects`; where it is refused, it
            is as `aspect.missing`.
        normalize: a name of scales.METHODS: the reward says how an answer compares with others rated by the same.
        per: the same what: annotator or source.
        method: how votes on one pair add up: a name of votes.METHODS, or dawid_skene.
        of: who meets in battles: answer or model. An answer of a model that nobody names is then refused as
            `model.missing`, and answers by one model are filtered.
        ties: see `bradley_terry.fit`.
        covariates: see `battles.battles`.
        prior: see `battles.by_bradley_terry`.
        elo: k, base, scale, start, see `elo.elo`. Battles come in the order of source, file and record.
        verifier: "module:function" of (messages, answer) → reward. It rates every answer that anyone judged; one that
            it gives no finite number is refused under a code of verifier.DETAILS.
        rewarder: what runs the reward model; it rates the same answers, and those that cannot be made tokens are
            refused under their code.

    Raises:
        ValueError: ratings of several aspects and no `aspects` to say how they combine; see the functions above.
    """
    (folder,) = inputs.values()
    judgments = texts.read(folder, "judgments")
    if by == "verifier":
        assert verifier is not None
        return _by_verifier(folder, judgments, verifier, out)
    if by == "reward_model":
        assert rewarder is not None
        return _by_reward_model(folder, judgments, rewarder, out)
    heard, filtered = _heard(judgments, by, aspects)
    if by in ("bradley_terry", "elo"):
        completions = _with_lengths(folder) if "length" in covariates else texts.read(folder, "completions")
        if by == "elo":
            found = by_elo(heard, completions, of=of, **(elo or {}))
        else:
            found = by_bradley_terry(heard, completions, of=of, ties=ties, covariates=covariates, prior=prior)
        return _of_battles(found, folder, judgments.height, filtered, out)
    refused: list[Refusal] = []
    if scale is not None:
        wrong = ratings.out_of_scale(scale)
        off = heard.filter(wrong)
        refused.append(Refusal("rating.out_of_scale", off, f"the declared scale is {scale[0]:g} to {scale[1]:g}"))
        heard = heard.filter(~wrong)
    usable = heard.height
    agreement = _agreement(heard)
    if normalize is not None:
        heard = scales.normalize(heard, normalize, per)
    if aspects:
        heard, incomplete = ratings.combine_aspects(heard, aspects, missing=missing)
        refused.append(Refusal("aspect.missing", incomplete, f"an answer needs all of: {', '.join(aspects)}"))
        usable -= incomplete.height
    answers = heard.filter(pl.col("kind") != "comparison")
    rated = ratings.rate_answers(answers, scale=scale)
    comparisons = heard.filter(pl.col("kind") == "comparison")
    if method == "dawid_skene":
        compared, people = annotators.compare(comparisons)
        agreement |= {"annotators": people.height, "most_active": _most_active(people)}
    else:
        compared = votes.compare(comparisons, method=method)
    _write(out, folder, rated, compared, refused, agreement)
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


def _of_battles(found: Rated, folder: Path, judgments: int, filtered: dict[str, int], out: Path) -> list[Count]:
    """Write what battles told; counted first as judgments, then as the answers that met."""
    used = found.battles
    unnamed = Refusal("model.missing", used.unnamed, "battles of models need the name of each answer's model")
    told = {
        "models": found.models.to_dicts(),
        "effects": {name: {"estimate": value, "std": std} for name, (value, std) in found.effects.items()},
    }
    _write(out, folder, found.rated, tables.empty("compared"), [unnamed], _agreement(used.rows) | told)
    if used.within.height:
        filtered = filtered | {"two answers by one model": used.within.height}
    sides, battles = 2 * used.rows.height, used.rows.height
    merged = {"into one row per answer": sides - found.rated.height} if sides > found.rated.height else {}
    quarantined = {unnamed.code: unnamed.rows.height} if unnamed.rows.height else {}
    return [
        Count("rate", "judgments", judgments, battles, quarantined=quarantined, filtered=filtered),
        Count("rate", "answers in battles", sides, found.rated.height, merged=merged),
    ]


def _by_verifier(folder: Path, judgments: pl.DataFrame, verifier: str, out: Path) -> list[Count]:
    """Write what a verifier says of every answer that anyone judged."""
    known, asked = _judged(folder, judgments)
    found = verify(_texts_of(folder, asked), find_verifier(verifier))
    refused = [
        Refusal(code, asked.join(rows.drop("code"), on="completion_row", how="inner").sort("completion_row"), detail)
        for code, detail in DETAILS.items()
        if (rows := found.refused.filter(pl.col("code") == code)).height
    ]
    return _of_answers(known, asked, found.rewards, refused, {}, folder, out)


def _by_reward_model(folder: Path, judgments: pl.DataFrame, rewarder: Rewarder, out: Path) -> list[Count]:
    """Write what a reward model says of every answer that anyone judged."""
    known, asked = _judged(folder, judgments)
    found = reward(_texts_of(folder, asked), rewarder, out)
    refused = [
        Refusal(code, asked.join(rows.drop("code"), on="completion_row", how="inner").sort("completion_row"), DETAIL)
        for code in found.refused["code"].unique().sort()
        if (rows := found.refused.filter(pl.col("code") == code)).height
    ]
    return _of_answers(known, asked, found.rewards, refused, {"reward_model": found.recipe}, folder, out)


def _judged(folder: Path, judgments: pl.DataFrame) -> tuple[int, pl.DataFrame]:
    """How many answers there are, and those that anyone judged, each with its `judgment_rows`."""
    others = judgments.filter(pl.col("other_row").is_not_null()).select(
        completion_row="other_row", judgment_row="judgment_row"
    )
    sides = pl.concat([judgments.select("completion_row", "judgment_row"), others])
    behind = sides.group_by("completion_row").agg(judgment_rows=pl.col("judgment_row").sort())
    known = texts.read(folder, "completions", ["completion_row", "prompt_row", "source"])
    return known.height, known.join(behind, on="completion_row", how="inner").sort("completion_row")


def _texts_of(folder: Path, asked: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for batch in texts.completions_by_chunk(folder):
        yield batch.join(asked.select("completion_row"), on="completion_row", how="semi")


def _of_answers(
    known: int,
    asked: pl.DataFrame,
    rewards: pl.DataFrame,
    refused: list[Refusal],
    told: dict[str, Any],
    folder: Path,
    out: Path,
) -> list[Count]:
    """Write the answers with their rewards."""
    rated = asked.join(rewards, on="completion_row", how="inner").sort("completion_row")
    rated = rated.with_columns(votes=pl.col("judgment_rows").list.len().cast(pl.Int64))
    _write(out, folder, tables.conform(rated, "rated"), tables.empty("compared"), refused, told)
    unjudged = known - asked.height
    return [
        Count(
            "rate",
            "completions",
            known,
            rated.height,
            quarantined={r.code: r.rows.height for r in refused},
            filtered={"without a judgment": unjudged} if unjudged else {},
        )
    ]


def _write(
    out: Path, folder: Path, rated: pl.DataFrame, compared: pl.DataFrame, refused: list[Refusal], told: dict[str, Any]
) -> None:
    tables.write(rated, out / "rated.parquet", "rated")
    tables.write(compared, out / "compared.parquet", "compared")
    tables.write(refusals(refused, "rate", folder), out / "quarantine.parquet", "quarantine")
    (out / "rating.json").write_text(json.dumps(told, indent=2, ensure_ascii=False))


def _with_lengths(folder: Path) -> pl.DataFrame:
    """The completions with `length`, in characters."""
    lengths = [
        batch.select("completion_row", length=pl.col("completion").str.len_chars())
        for batch in texts.completions_by_chunk(folder, prompts=False)
    ]
    completions = texts.read(folder, "completions")
    none = pl.DataFrame(schema={"completion_row": pl.UInt32, "length": pl.UInt32})
    return completions.join(pl.concat([none, *lengths]), on="completion_row", how="left")


def _agreement(heard: pl.DataFrame) -> dict[str, Any]:
    """How well those agree who judged the same; nothing of what nobody judged twice."""
    found = {"votes": annotators.vote_agreement(heard.filter(pl.col("kind") == "comparison"))}
    for kind in ("rating", "label"):
        found[kind] = annotators.rating_agreement(heard.filter(pl.col("kind") == kind))
    twice = {kind: agreement._asdict() for kind, agreement in found.items() if agreement.units}
    return {"agreement": twice} if twice else {}


def _most_active(people: pl.DataFrame) -> list[dict[str, Any]]:
    """The annotators of most votes and how reliable they are."""
    order = ("votes", "source", "annotator")
    return people.sort(*order, descending=[True, False, False], nulls_last=True).head(SHOWN).to_dicts()


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
            raise ValueError(
                f"rate.aspects: no aspect named {', '.join(absent)}; the sources rate {', '.join(named) or 'none'}"
            )
        unnamed = (kind == "rating") & ~pl.col("aspect").cast(pl.String).is_in(list(aspects)).fill_null(False)
        filtered |= {"aspect not named in rate.aspects": heard.filter(unnamed).height}
        heard = heard.filter(~unnamed)
    elif len(named) > 1:
        raise ValueError(
            f"the sources rate {len(named)} aspects ({', '.join(named)}): say how they combine, "
            f"such as rate: {{by: aspects, aspects: {{{named[0]}: 1, {named[1]}: 1}}}}"
        )
    return heard, {reason: n for reason, n in filtered.items() if n}
