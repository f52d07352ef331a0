"""Who can be trusted: votes weighed by how reliable their annotators are (Dawid–Skene), and how well votes agree."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from rlhf_data.rate.sums import sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SECOND, TIE, FIRST = 0, 1, 2  # what a vote says; 2 · value for values of 0, 0.5 and 1
_ROUNDS = 1000
_SMALL_STEP = 1e-7  # of a probability


class DawidSkene(NamedTuple):
    """What votes tell of pairs and of annotators.

    Attributes:
        posterior: (pairs, 3) probability that the truth is SECOND, TIE, FIRST.
        on_side: (annotators, 3) where one answer is better: probability to vote for it, for a tie, for the other.
        on_tie: (annotators, 2) where the answers tie: probability to vote for a tie, for either side.
        tie: share of pairs that tie.
        rounds: of expectation and maximisation; _ROUNDS where they did not settle.
    """

    posterior: Floats
    on_side: Floats
    on_tie: Floats
    tie: float
    rounds: int


class Agreement(NamedTuple):
    """How well annotators agree.

    Attributes:
        units: things judged twice or more.
        votes: votes on them.
        percent: share of pairs of votes on one thing that are equal, each thing with the same weight per vote; null
            where nothing was judged twice.
        alpha: Krippendorff's α: 1 for perfect agreement, 0 for that of chance; null where nothing was judged twice or
            all votes are equal.
    """

    units: int
    votes: int
    percent: float | None
    alpha: float | None


def dawid_skene(
    pair: ArrayLike, annotator: ArrayLike, vote: ArrayLike, n_pairs: int, n_annotators: int, *, smoothing: float = 4.0
) -> DawidSkene:
    """The truth of pairs and the reliability of annotators that explain the votes best, by expectation–maximisation.

    Each vote depends on the truth and on its annotator alone. Nothing changes where the two answers of a pair change
    places: both sides are as likely before the votes, and an annotator is as reliable on the first as on the second.
    So there are no sides to mix up; what remains, that everyone might be wrong together, is settled by taking votes
    for right more often than for wrong.

    Args:
        pair: (votes,) which pair, numbers from 0 to n_pairs − 1.
        annotator: (votes,) whose, numbers from 0 to n_annotators − 1.
        vote: (votes,) SECOND, TIE or FIRST.
        n_pairs: how many pairs.
        n_annotators: how many annotators.
        smoothing: votes' worth of the reliability of all annotators together that each annotator's own is mixed with,
            > 0: one with a single vote is taken for average.

    Returns:
        see DawidSkene. A pair without votes has the shares of all. Where nobody voted for a tie, none is possible.
        Votes of one pair are taken as independent, so that many of them give a certainty that is too high where
        annotators err together.

    Raises:
        ValueError: smoothing that is not positive, a vote that is none of the three.

    Source: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm".
    """
    u, a, v = (np.asarray(column, dtype=np.int64) for column in (pair, annotator, vote))
    if not 0.0 < smoothing < np.inf:
        raise ValueError(f"smoothing is {smoothing:g}: it must be > 0, or one vote decides an annotator's reliability")
    if len(v) and not np.isin(v, (SECOND, TIE, FIRST)).all():
        raise ValueError(f"votes must be {SECOND}, {TIE} or {FIRST}; there are {sorted(set(v.tolist()))}")
    in_order = np.lexsort((v, a, u))  # sums of floats must not depend on the order of votes
    u, a, v = u[in_order], a[in_order], v[in_order]
    cast = np.stack([v == vote for vote in (SECOND, TIE, FIRST)], axis=1)
    ties = bool(cast[:, TIE].any())
    posterior = _shares(u, cast.astype(np.float64), n_pairs, ties)
    previous, rounds = posterior + 1.0, 0
    tie, on_side, on_tie = _reliability(u, a, cast, posterior, n_annotators, smoothing, ties)
    while np.abs(posterior - previous).max(initial=0.0) > _SMALL_STEP and rounds < _ROUNDS:
        previous, rounds = posterior, rounds + 1
        posterior = _posterior(u, a, v, tie, on_side, on_tie, n_pairs)
        tie, on_side, on_tie = _reliability(u, a, cast, posterior, n_annotators, smoothing, ties)
    votes = np.bincount(a, minlength=n_annotators)
    if votes @ on_side[:, 0] < votes @ on_side[:, 2]:
        posterior, on_side = posterior[:, ::-1], on_side[:, ::-1]
    return DawidSkene(posterior, on_side, on_tie, tie, rounds)


def _shares(u: Ints, cast: Floats, n_pairs: int, ties: bool) -> Floats:
    """Each pair's shares of the votes; of a pair without votes, equal ones."""
    counts = np.stack([sums(u, column, n_pairs) for column in cast.T], axis=1)
    total = counts.sum(axis=1, keepdims=True)
    none = np.array([1.0, float(ties), 1.0]) / (2.0 + ties)
    return np.where(total > 0, counts / np.maximum(total, 1.0), none)


def _reliability(
    u: Ints, a: Ints, cast: NDArray[np.bool_], posterior: Floats, n_annotators: int, smoothing: float, ties: bool
) -> tuple[float, Floats, Floats]:
    """Maximisation: the share of ties, and on_side and on_tie of each annotator."""
    second, tie, first = posterior[u].T
    of_side = np.stack(
        [
            cast[:, FIRST] * first + cast[:, SECOND] * second,
            cast[:, TIE] * (first + second),
            cast[:, FIRST] * second + cast[:, SECOND] * first,
        ]
    )
    of_tie = np.stack([cast[:, TIE] * tie, (cast[:, FIRST] | cast[:, SECOND]) * tie])

    def smoothed(weights: Floats) -> Floats:
        counts = np.stack([sums(a, row, n_annotators) for row in weights], axis=1)
        # One vote of each kind keeps every probability of all annotators above 0.
        everyone = (counts.sum(axis=0) + 1.0) / (counts.sum() + len(weights))
        return (counts + smoothing * everyone) / (counts.sum(axis=1, keepdims=True) + smoothing)

    share = float((posterior[:, TIE].sum() + 1.0) / (len(posterior) + 3.0)) if ties else 0.0
    return share, smoothed(of_side), smoothed(of_tie)


def _posterior(u: Ints, a: Ints, v: Ints, tie: float, on_side: Floats, on_tie: Floats, n_pairs: int) -> Floats:
    """Expectation: the probability of each truth of each pair."""
    side, level = np.log(on_side)[a], np.log(on_tie)[a] - np.array([0.0, np.log(2.0)])
    rows = np.arange(len(v))
    by_truth = (side[rows, v], level[rows, np.where(v == TIE, 0, 1)], side[rows, 2 - v])  # side: right, tie, wrong
    evidence = np.stack([sums(u, column, n_pairs) for column in by_truth], axis=1)
    with np.errstate(divide="ignore"):  # log 0 is −inf: without ties there is none
        evidence += np.log([(1.0 - tie) / 2.0, tie, (1.0 - tie) / 2.0])
    odds = np.exp(evidence - evidence.max(axis=1, keepdims=True, initial=-np.inf))
    return odds / odds.sum(axis=1, keepdims=True)


def compare(judgments: pl.DataFrame, *, smoothing: float = 4.0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Preferences by Dawid–Skene, each source by itself.

    Args:
        judgments: rows of kind comparison: judgment_row, prompt_row, completion_row, other_row, source, annotator?,
            value. A value above one half is a vote for completion_row, below for other_row, one half for a tie. Votes
            without an annotator count as those of one.
        smoothing: see `dawid_skene`.

    Returns:
        preferences: prompt_row, chosen_row, rejected_row, source, preference, votes, judgment_rows, sorted. The
            preference is the probability that chosen is better, plus half of that of a tie; where the two are equal
            the smaller row is called chosen;
        annotators: source, annotator?, votes, right, tie, wrong (their probabilities where one answer is better),
            tie_on_tie (null where nobody voted for a tie), rounds; sorted.
    """
    sources = judgments["source"].unique().cast(pl.String).sort().to_list()
    found = [_compare(judgments.filter(pl.col("source") == source), smoothing) for source in sources]
    preferences, annotators = zip(*(found or [_compare(judgments, smoothing)]), strict=True)
    return (
        pl.concat(preferences).sort("chosen_row", "rejected_row", pl.col("source").cast(pl.String)),
        pl.concat(annotators),
    )


def _compare(judgments: pl.DataFrame, smoothing: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same for one source."""
    votes = ballots(judgments)
    pairs = (
        votes.group_by("prompt_row", "first_row", "second_row", "source")
        .agg(votes=pl.len().cast(pl.Int64), judgment_rows=pl.col("judgment_row").sort())
        .sort("first_row", "second_row")
        .with_row_index("pair")
    )
    names = votes.select("annotator").unique().sort("annotator", nulls_last=False).with_row_index("number")
    votes = votes.join(pairs.select("pair", "first_row", "second_row"), on=["first_row", "second_row"]).join(
        names, on="annotator", nulls_equal=True
    )
    found = dawid_skene(votes["pair"], votes["number"], votes["vote"], pairs.height, names.height, smoothing=smoothing)
    # Each side by itself, not one as 1 − the other: equal odds are the same number on either side.
    first, second = (found.posterior[:, side] + found.posterior[:, TIE] / 2.0 for side in (FIRST, SECOND))
    leads = pl.Series(first >= second, dtype=pl.Boolean)
    preferences = pairs.select(
        "prompt_row",
        chosen_row=pl.when(leads).then("first_row").otherwise("second_row"),
        rejected_row=pl.when(leads).then("second_row").otherwise("first_row"),
        source="source",
        preference=pl.Series(np.clip(np.maximum(first, second), 0.5, 1.0), dtype=pl.Float64),
        votes="votes",
        judgment_rows="judgment_rows",
    )
    counts = votes.group_by("source", "number").agg(votes=pl.len().cast(pl.Int64))
    right, tie, wrong = (pl.Series(column, dtype=pl.Float64) for column in found.on_side.T)
    on_tie = pl.Series(found.on_tie[:, 0], dtype=pl.Float64) if found.tie else pl.lit(None, dtype=pl.Float64)
    reliability = names.with_columns(right=right, tie=tie, wrong=wrong, tie_on_tie=on_tie, rounds=pl.lit(found.rounds))
    annotators = (
        reliability.join(counts, on="number")
        .sort("number")
        .select("source", "annotator", "votes", "right", "tie", "wrong", "tie_on_tie", "rounds")
    )
    return preferences, annotators


def ballots(judgments: pl.DataFrame) -> pl.DataFrame:
    """Comparisons as votes on unordered pairs: judgments with first_row < second_row and `vote` (see SECOND)."""
    swapped = pl.col("completion_row") > pl.col("other_row")
    value = pl.when(pl.col("value") > 0.5).then(FIRST).when(pl.col("value") < 0.5).then(SECOND).otherwise(TIE)
    return judgments.with_columns(
        pl.col("annotator").cast(pl.String),
        first_row=pl.min_horizontal("completion_row", "other_row"),
        second_row=pl.max_horizontal("completion_row", "other_row"),
        vote=pl.when(swapped).then(2 - value).otherwise(value).cast(pl.Int64),
    )


def vote_agreement(judgments: pl.DataFrame) -> Agreement:
    """How well votes on the same two answers agree, a tie being a vote like the others.

    Args:
        judgments: rows of kind comparison, see `compare`; pairs of different sources are different things.

    α expects what votes would be if they were drawn from all votes of all pairs, each pair counted in both orders, so
    that which answer is called first does not matter.
    """
    counts = (
        ballots(judgments)
        .group_by("source", "first_row", "second_row")
        .agg(*((pl.col("vote") == vote).sum().cast(pl.Float64).alias(str(vote)) for vote in (SECOND, TIE, FIRST)))
        .sort(pl.col("source").cast(pl.String), "first_row", "second_row")
        .select("0", "1", "2")
        .to_numpy()
        .reshape(-1, 3)
    )
    n = counts.sum(axis=1)
    counts, n = counts[n > 1], n[n > 1]
    if not len(n):
        return Agreement(0, 0, None, None)
    # Pairs of votes on one thing that are equal, each vote weighing as much whatever the others of its thing.
    equal = float(((counts * (counts - 1.0)).sum(axis=1) / (n - 1.0)).sum() / n.sum())
    total = counts.sum(axis=0)
    both = total + total[::-1]
    expected = float((both * (both.sum() - both)).sum() / (both.sum() * (both.sum() - 1.0)))
    return Agreement(len(n), int(n.sum()), equal, 1.0 - (1.0 - equal) / expected if expected > 0.0 else None)


def rating_agreement(judgments: pl.DataFrame) -> Agreement:
    """How well ratings of the same answer agree, by Krippendorff's α for intervals: squared differences.

    Args:
        judgments: rows of kind rating, label or rank: completion_row, source, kind, aspect?, value. What differs in any
            of them but the value is another thing; all must be on one scale.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    judgments = judgments.filter(pl.col("completion_row").is_duplicated())  # most are judged once, and this is quick
    thing = [pl.col(name).cast(pl.String) for name in ("source", "kind", "aspect")]
    by_answer = judgments.group_by(*thing, "completion_row").agg(pl.col("value").sort())
    several = by_answer.filter(pl.col("value").list.len() > 1).sort("source", "completion_row", "kind", "aspect")
    values = several["value"].explode().to_numpy()
    size = several["value"].list.len().to_numpy().astype(np.int64)
    if not len(values):
        return Agreement(0, 0, None, None)
    unit, n = np.repeat(np.arange(len(size)), size), len(values)
    away = values - np.bincount(unit, values)[unit] / size[unit]
    # Σ over pairs of (v − w)² is 2·m·Σ (v − mean)² for m votes.
    observed = 2.0 * np.sum(np.bincount(unit, away**2) * size / (size - 1.0)) / n
    whole = np.sum((values - values.mean()) ** 2)
    expected = 2.0 * whole / (n - 1.0)
    repeats = several.explode("value").group_by("source", "completion_row", "kind", "aspect", "value").len()
    same = repeats.join(
        several.select(pl.exclude("value"), m=pl.col("value").list.len()),
        on=["source", "completion_row", "kind", "aspect"],
        nulls_equal=True,
    )
    equal = same.select((pl.col("len") * (pl.col("len") - 1) / (pl.col("m") - 1)).sort().sum()).item() / n
    return Agreement(len(size), n, float(equal), float(1.0 - observed / expected) if expected > 0.0 else None)
