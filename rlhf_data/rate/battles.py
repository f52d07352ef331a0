"""Battles out of comparisons, and the strengths that they give, laid on the answers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from rlhf_data.rate import bradley_terry
from rlhf_data.rate.elo import elo

OF = ("answer", "model")
COVARIATES = ("length", "position")
PRIOR = {"strength": 2.0, "answer": 1.0, "effect": 10.0}  # standard deviations, nats


class Battles(NamedTuple):
    """Comparisons as battles of numbered contestants.

    Attributes:
        rows: the judgments that count, with `first` and `second` (contestants) and a column for each covariate; sorted
            by judgment_row.
        contestants: contestant, and model (String?); completion_row too where answers meet.
        unnamed: judgments of an answer whose model nobody names, where models meet.
        within: judgments of two answers by one model, where models meet: they tell nothing of its strength.
    """

    rows: pl.DataFrame
    contestants: pl.DataFrame
    unnamed: pl.DataFrame
    within: pl.DataFrame


class Rated(NamedTuple):
    """What battles tell of answers and of models.

    Attributes:
        rated: prompt_row, completion_row, source, rating (null), reward, reward_std, label (null), votes,
            judgment_rows; one row for each answer that met another and each source that says so, sorted. The reward is
            the strength of the answer or of its model: nats by Bradley–Terry, points by Elo (and reward_std null).
        models: model, strength, std, battles; sorted by name. With answers, the levels of their models.
        effects: of each covariate, and of `tie` (log ν) with Davidson's ties: (estimate, standard error), nats.
        battles: see Battles; what was left out stands there.
    """

    rated: pl.DataFrame
    models: pl.DataFrame
    effects: dict[str, tuple[float, float]]
    battles: Battles


def battles(
    judgments: pl.DataFrame, completions: pl.DataFrame, *, of: str = "answer", covariates: Sequence[str] = ()
) -> Battles:
    """The battles in judgments.

    Args:
        judgments: judgment_row, prompt_row, completion_row, other_row, kind, value, position?, source, …; kinds other
            than comparison are ignored.
        completions: completion_row, model?; `length` (characters) where it is a covariate.
        of: who meets: answer, or the model that wrote it.
        covariates: of COVARIATES. length: (l − m) / (l + m) for lengths l and m, 0 for two empty answers, so that it
            lies in −1 to 1 and does not depend on units. position: 1 where the answer was shown first, −1 where second,
            0 where that is not known; its effect is the log-odds of an answer against its equal for being shown first.

    Raises:
        ValueError: an unknown word; length without lengths.
    """
    if of not in OF:
        raise ValueError(f"no contestants named {of!r}; known: {', '.join(OF)}")
    for name in covariates:
        if name not in COVARIATES:
            raise ValueError(f"no covariate named {name!r}; known: {', '.join(COVARIATES)}")
    wanted = ["model", *(["length"] if "length" in covariates else [])]
    if missing := [name for name in wanted if name not in completions.columns]:
        raise ValueError(f"completions have no column {', '.join(missing)}; they have {', '.join(completions.columns)}")
    known = completions.select("completion_row", *wanted).with_columns(pl.col("model").cast(pl.String))
    met = (
        judgments.filter(pl.col("kind") == "comparison")
        .join(known, on="completion_row", how="left")
        .join(known.rename({"completion_row": "other_row"}), on="other_row", how="left", suffix="_other")
        .sort("judgment_row")
    )
    unnamed = within = met.clear()
    if of == "model":
        named = pl.col("model").is_not_null() & pl.col("model_other").is_not_null()
        unnamed, met = met.filter(~named), met.filter(named)
        within, met = (
            met.filter(pl.col("model") == pl.col("model_other")),
            met.filter(pl.col("model") != pl.col("model_other")),
        )
        contestants = _numbered(pl.concat([met["model"], met["model_other"].rename("model")]))
        key = ("model", "model_other")
    else:
        rows = _numbered(pl.concat([met["completion_row"], met["other_row"].rename("completion_row")]))
        contestants = rows.join(known.select("completion_row", "model"), on="completion_row", how="left").sort(
            "contestant"
        )
        key = ("completion_row", "other_row")
    number = contestants.select("contestant", pl.col(key[0]))
    met = (
        met.join(number.rename({"contestant": "first"}), on=key[0], how="left")
        .join(number.rename({"contestant": "second", key[0]: key[1]}), on=key[1], how="left")
        .with_columns(_covariate(name) for name in covariates)
        .sort("judgment_row")
    )
    return Battles(
        met.select(*judgments.columns, "first", "second", *(f"by_{name}" for name in covariates)),
        contestants,
        unnamed.select(judgments.columns),
        within.select(judgments.columns),
    )


def by_bradley_terry(
    judgments: pl.DataFrame,
    completions: pl.DataFrame,
    *,
    of: str = "answer",
    ties: str = "half",
    covariates: Sequence[str] = (),
    prior: Mapping[str, float] | None = PRIOR,
) -> Rated:
    """Rewards by Bradley–Terry.

    Args:
        judgments: see `battles`.
        completions: see `battles`.
        of: answer: each answer has a strength, which leans on the level of the model that wrote it; model: an answer's
            reward is its model's strength.
        ties: half or davidson, see `bradley_terry.fit`.
        covariates: see `battles`.
        prior: standard deviations in nats: strength, of models about 0; answer, of answers about their model; effect,
            of the covariates and of log ν about 0. What is left out is PRIOR's. None is maximum likelihood.

    Raises:
        ValueError: see `battles` and `bradley_terry.fit`; an unknown word in `prior`.
    """
    if unknown := sorted((prior or {}).keys() - PRIOR.keys()):
        raise ValueError(f"no prior of {', '.join(unknown)}; known: {', '.join(PRIOR)}")
    found = battles(judgments, completions, of=of, covariates=covariates)
    spread = PRIOR | dict(prior or {})
    names = found.contestants["model"].unique().drop_nulls().sort()
    leaning = of == "answer" and prior is not None and len(names) > 0
    level = found.contestants["model"].replace_strict(names, np.arange(len(names)), default=-1, return_dtype=pl.Int64)
    sd = spread["answer"] if leaning else spread["strength"]
    strengths = bradley_terry.fit(
        found.rows["first"],
        found.rows["second"],
        found.rows["value"],
        found.contestants.height,
        covariates=found.rows.select(f"by_{name}" for name in covariates).to_numpy() if covariates else None,
        ties=ties,
        level=level if leaning else None,
        sd=None if prior is None else sd,
        level_sd=spread["strength"],
        effect_sd=spread["effect"],
        names=found.contestants.to_series(1).to_list(),
    )
    effects = {
        name: (float(estimate), float(std))
        for name, estimate, std in zip(covariates, strengths.effect, strengths.effect_std, strict=True)
    }
    if strengths.tie is not None and strengths.tie_std is not None:
        effects["tie"] = (strengths.tie, strengths.tie_std)
    of_models = (strengths.strength, strengths.std) if of == "model" else (strengths.level, strengths.level_std)
    models = pl.DataFrame({"model": names if of == "model" or leaning else names.clear()}).with_columns(
        strength=pl.Series(of_models[0], dtype=pl.Float64), std=pl.Series(of_models[1], dtype=pl.Float64)
    )
    return Rated(_laid_on_answers(found, strengths.strength, strengths.std), _counted(models, found), effects, found)


def by_elo(
    judgments: pl.DataFrame,
    completions: pl.DataFrame,
    *,
    of: str = "answer",
    time: str | None = None,
    k: float = 4.0,
    base: float = 10.0,
    scale: float = 400.0,
    start: float = 1000.0,
) -> Rated:
    """Rewards by Elo, after the battles in order of time.

    Args:
        judgments: see `battles`; file and record too.
        completions: see `battles`.
        of: answer or model, see `by_bradley_terry`.
        time: the column of judgments that says when; without it (and among equal times) the battles come in the order
            of source, file and record.
        k: see `elo`.
        base: see `elo`.
        scale: see `elo`.
        start: see `elo`.

    Raises:
        ValueError: see `battles` and `elo`; no such column, or a battle without a time.
    """
    if time is not None and time not in judgments.columns:
        raise ValueError(f"judgments have no column {time}; they have {', '.join(judgments.columns)}")
    found = battles(judgments, completions, of=of)
    if time is not None and (timeless := found.rows[time].null_count()):
        raise ValueError(f"{timeless} of {found.rows.height} battles have no {time}: Elo needs their order")
    place = (pl.col("source").cast(pl.String), pl.col("file").cast(pl.String), "record", "judgment_row")
    rows = found.rows.sort(*([time] if time else []), *place)
    ratings = elo(
        rows["first"],
        rows["second"],
        rows["value"],
        found.contestants.height,
        k=k,
        base=base,
        scale=scale,
        start=start,
    )
    named = found.contestants["model"] if of == "model" else found.contestants["model"].clear()
    models = pl.DataFrame({"model": named, "strength": ratings[: len(named)]}).with_columns(
        std=pl.lit(None, dtype=pl.Float64)
    )
    return Rated(_laid_on_answers(found, ratings, None), _counted(models, found), {}, found)


def _numbered(names: pl.Series) -> pl.DataFrame:
    """Each name once, sorted, with its number: the order of names decides, never that of rows."""
    return names.unique().sort().to_frame().with_row_index("contestant")


def _covariate(name: str) -> pl.Expr:
    if name == "position":
        shown = pl.when(pl.col("position") == "first").then(1.0).when(pl.col("position") == "second").then(-1.0)
        return shown.otherwise(0.0).alias("by_position")
    here, there = pl.col("length").cast(pl.Float64), pl.col("length_other").cast(pl.Float64)
    return pl.when(here + there > 0.0).then((here - there) / (here + there)).otherwise(0.0).alias("by_length")


def _sides(found: Battles) -> pl.DataFrame:
    """Each battle twice, once for each answer."""
    shared = ("prompt_row", "source", "judgment_row")
    return pl.concat(
        [
            found.rows.select(*shared, "completion_row", contestant="first"),
            found.rows.select(*shared, completion_row="other_row", contestant="second"),
        ]
    )


def _laid_on_answers(found: Battles, strength: np.ndarray, std: np.ndarray | None) -> pl.DataFrame:
    number = pl.Series("contestant", np.arange(len(strength)), dtype=pl.UInt32)
    rewards = pl.DataFrame([number, pl.Series("reward", strength, dtype=pl.Float64)]).with_columns(
        reward_std=pl.lit(None, dtype=pl.Float64) if std is None else pl.Series(std, dtype=pl.Float64)
    )
    return (
        _sides(found)
        .group_by("prompt_row", "completion_row", "source", "contestant")
        .agg(votes=pl.len().cast(pl.Int64), judgment_rows=pl.col("judgment_row").sort())
        .join(rewards, on="contestant", how="left")
        .select(
            "prompt_row",
            "completion_row",
            "source",
            pl.lit(None, dtype=pl.Float64).alias("rating"),
            "reward",
            "reward_std",
            pl.lit(None, dtype=pl.Boolean).alias("label"),
            "votes",
            "judgment_rows",
        )
        .sort("completion_row", pl.col("source").cast(pl.String))
    )


def _counted(models: pl.DataFrame, found: Battles) -> pl.DataFrame:
    """The models with the number of their battles, sorted by name."""
    met = _sides(found).join(found.contestants, on="contestant", how="left").group_by("model")
    counts = met.agg(battles=pl.col("judgment_row").n_unique().cast(pl.Int64))
    return models.join(counts, on="model", how="left").sort("model")
