"""Bradley–Terry: strengths out of battles, with ties, covariates and standard errors.

    P(i beats j) = σ(θᵢ − θⱼ + x·γ)

Strengths θ are in nats: a lead of 1 wins 73 % of the battles. The estimate is the mode of the posterior under Gaussian
priors, which exists and is unique whatever the battles; without a prior it is the maximum likelihood, which needs
battles that connect everyone. Newton's method finds it from sums over equal battles. Sums run in a sorted order and
without BLAS: neither the order of battles nor the number of threads changes a digit.

Source: Bradley and Terry 1952; Davidson 1970, "On extending the Bradley–Terry model to accommodate ties"; Ford 1957 for
when the maximum exists.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from rlhf_data.rate import blocks
from rlhf_data.rate.components import connected, strongly_connected
from rlhf_data.rate.sums import sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIES = ("half", "davidson")
_ROUNDS = 100
_SMALL_STEP = 1e-10  # nats; Newton's method squares the error, so what is left is rounding


class Strengths(NamedTuple):
    """What battles tell of everyone in them; everything in nats, each std the Laplace standard error.

    Attributes:
        strength: (n,) θ.
        std: (n,).
        level: (levels,) the means that strengths scatter about; empty without levels.
        level_std: (levels,).
        effect: (covariates,) γ.
        effect_std: (covariates,).
        tie: log ν of Davidson's ties, so that equals tie with probability ν / (2 + ν); None where ties are halves.
        tie_std: its standard error; None where ties are halves.
        rounds: of Newton's method.
    """

    strength: Floats
    std: Floats
    level: Floats
    level_std: Floats
    effect: Floats
    effect_std: Floats
    tie: float | None
    tie_std: float | None
    rounds: int


class _Battles(NamedTuple):
    """Battles, or equal battles added up: `weight` of them with this value and these covariates."""

    first: Ints
    second: Ints
    value: Floats
    weight: Floats
    covariates: Floats


class _Model(NamedTuple):
    """The posterior of strengths θ (n,) and of what all share, φ = levels, then effects, then log ν.

    Attributes:
        battles: summed; contestants are places of `where`.
        where: the blocks of the information matrix, one for each component.
        level: (n,) index of the level that a strength scatters about; 0 where there is none.
        precision: (n,) of a strength's prior; all 0 for maximum likelihood.
        pull: (n,) of the level on the strength and back: the precision, 0 where there is no level.
        shared_precision: (levels + effects,) of the prior of φ.
        levels: how many of φ are levels.
        davidson: whether the last of φ is log ν.
    """

    battles: _Battles
    where: blocks.Layout
    level: Ints
    precision: Floats
    pull: Floats
    shared_precision: Floats
    levels: int
    davidson: bool


class _Slopes(NamedTuple):
    """Log-likelihood of each summed battle with its derivatives by η (the lead of first) and δ = log ν.

    `eta` and `delta` are first derivatives, the others minus the second ones.
    """

    height: Floats
    eta: Floats
    delta: Floats
    eta_eta: Floats
    eta_delta: Floats
    delta_delta: Floats


class _Information(NamedTuple):
    """The information matrix [A B; Bᵀ C] of θ and φ, taken apart.

    Attributes:
        inverse: entries of A⁻¹, by `where`.
        cross: (n, effects) B without the levels, whose part is −pull.
        solved: (n, effects) A⁻¹ · cross.
        covariance: (C − Bᵀ A⁻¹ B)⁻¹, the covariance of φ.
    """

    inverse: Floats
    cross: Floats
    solved: Floats
    covariance: Floats


def fit(
    first: ArrayLike,
    second: ArrayLike,
    value: ArrayLike,
    n: int,
    *,
    weight: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    ties: str = "half",
    level: ArrayLike | None = None,
    sd: float | None = 2.0,
    level_sd: float = 2.0,
    effect_sd: float = 10.0,
    names: Sequence[str] | None = None,
) -> Strengths:
    """Strengths of n contestants.

    Args:
        first: (battles,) who met, numbers from 0 to n − 1.
        second: (battles,) whom.
        value: (battles,) probability that first is better, 0 to 1; 0.5 is a tie.
        n: how many there are, whether they met anyone or not.
        weight: (battles,) how many votes each battle counts for, > 0; 1 by default.
        covariates: (battles, covariates) of first against second, such as 1 where first was shown first and −1 where
            second was; they change sign when the two change places.
        ties: half, a tie (or any value) counts as that share of a win; its standard errors take the votes for yes and
            no, so with many ties they are too wide. davidson, a third outcome with its own probability,
            P(tie) : P(win) = ν : exp(±η/2), for values of 0, 0.5 and 1. Davidson's ties keep the log-likelihood
            concave and the points (a tie is half a point) sufficient; Rao and Kupper's do neither so simply.
        level: (n,) the group of each contestant, numbers from 0, −1 for none: the strengths of a group scatter about
            its level, and levels about 0. This is how an answer leans on the model that wrote it. Both are found
            together; where answers meet only a few times, that mode is nearer 0 than the mean (with 3 battles an
            answer, 90 % intervals hold 88 %).
        sd: of the Gaussian prior of strengths, about their level, or about 0 where there are no levels; None for
            maximum likelihood.
        level_sd: of the Gaussian prior of levels about 0.
        effect_sd: of the Gaussian prior of γ and log ν about 0; wide, and there so that covariates that separate
            wins from losses, or battles that never tie, have a finite estimate.
        names: of the contestants, for errors; their numbers by default.

    Returns:
        strengths; of maximum likelihood, with mean 0. Who met nobody stands at the prior: at 0 or its level.

    Raises:
        ValueError: values that are no probabilities, a battle with oneself, a contestant that is not there; maximum
            likelihood where some never lost to the others or never met them, named; more than blocks.LARGEST
            contestants connected by battles.
    """
    raw = _checked(first, second, value, weight, covariates, n, ties)
    if sd is None and level is not None:
        raise ValueError("levels need a prior: give sd, by how much strengths scatter about them")
    group = connected(n, raw.first, raw.second)
    if sd is None:
        _refuse_infinite(raw, n, names)
    where = blocks.layout(group)
    lev = np.full(n, -1) if level is None else np.asarray(level, dtype=np.int64)[where.order]
    levels, effects = int(lev.max(initial=-1)) + 1, raw.covariates.shape[1] + (ties == "davidson")
    # Who has no level scatters as one whose level nobody else shares.
    lone = 0.0 if sd is None else 1.0 / (sd**2 + (level_sd**2 if levels else 0.0))
    precision = np.where(lev >= 0, 0.0 if sd is None else sd**-2.0, lone)
    model = _Model(
        battles=_summed(raw, where),
        where=where,
        level=np.maximum(lev, 0),
        precision=precision,
        pull=np.where(lev >= 0, precision, 0.0),
        shared_precision=np.repeat([level_sd**-2.0, effect_sd**-2.0], [levels, effects]),
        levels=levels,
        davidson=ties == "davidson",
    )
    theta, phi, rounds = _mode(model)
    theta_std, phi_std = _stds(model, _information(model, _slopes(model, theta, phi)))
    tie = (float(phi[-1]), float(phi_std[-1])) if model.davidson else (None, None)
    last = len(phi) - model.davidson
    return Strengths(
        strength=theta[where.place],
        std=theta_std[where.place],
        level=phi[:levels],
        level_std=phi_std[:levels],
        effect=phi[levels:last],
        effect_std=phi_std[levels:last],
        tie=tie[0],
        tie_std=tie[1],
        rounds=rounds,
    )


def _checked(
    first: ArrayLike,
    second: ArrayLike,
    value: ArrayLike,
    weight: ArrayLike | None,
    covariates: ArrayLike | None,
    n: int,
    ties: str,
) -> _Battles:
    i, j = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    y = np.asarray(value, dtype=np.float64)
    w = np.ones(len(i)) if weight is None else np.asarray(weight, dtype=np.float64)
    x = np.zeros((len(i), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    if not (i.shape == j.shape == y.shape == w.shape and x.ndim == 2 and len(x) == len(i)):
        raise ValueError(
            f"first is {i.shape}, second {j.shape}, value {y.shape}, weight {w.shape}, covariates {x.shape}: "
            "each battle needs one of each"
        )
    for what, wrong in (
        ("a value that is no probability (0 to 1)", ~((y >= 0.0) & (y <= 1.0))),
        ("a weight that is not positive and finite", ~((w > 0.0) & np.isfinite(w))),
        ("a covariate that is not finite", ~np.isfinite(x).all(axis=1)),
        ("a contestant beside 0 to n − 1", (np.minimum(i, j) < 0) | (np.maximum(i, j) >= n)),
        ("a contestant that meets itself", i == j),
    ):
        if wrong.any():
            raise ValueError(f"{wrong.sum()} of {len(i)} battles have {what}; the first is number {np.argmax(wrong)}")
    if ties not in TIES:
        raise ValueError(f"no ties named {ties!r}; known: {', '.join(TIES)}")
    if ties == "davidson" and (soft := ~np.isin(y, (0.0, 0.5, 1.0))).any():
        raise ValueError(f"{soft.sum()} of {len(y)} values are none of 0, 0.5 and 1; say ties: half")
    return _Battles(i, j, y, w, x)


def _refuse_infinite(battles: _Battles, n: int, names: Sequence[str] | None) -> None:
    wins, losses = battles.value > 0.0, battles.value < 1.0
    winner = np.concatenate([battles.first[wins], battles.second[losses]])
    loser = np.concatenate([battles.second[wins], battles.first[losses]])
    parts = strongly_connected(n, winner, loser, most=4)
    if len(parts) > 1:
        shown = [", ".join(str(names[k] if names else k) for k in part[:5]) + ", …" * (len(part) > 5) for part in parts]
        raise ValueError(
            "the battles do not connect everyone by wins and by losses, so no strengths are likeliest; apart are: "
            + "; ".join(f"({text})" for text in shown[:3])
            + "; …" * (len(parts) > 3)
            + ": give a prior"
        )


def _summed(battles: _Battles, where: blocks.Layout) -> _Battles:
    """Equal battles as one, smaller place first, sorted; places for contestants."""
    i, j = where.place[battles.first], where.place[battles.second]
    swapped = i > j
    sign = np.where(swapped, -1.0, 1.0)[:, None]
    named = {f"x{c}": (battles.covariates * sign)[:, c] + 0.0 for c in range(battles.covariates.shape[1])}  # −0 → 0
    rows = pl.DataFrame(
        {
            "first": np.minimum(i, j),
            "second": np.maximum(i, j),
            "value": np.where(swapped, 1.0 - battles.value, battles.value),
            "weight": battles.weight,
            **named,
        }
    )
    # Equal weights are counted, not added: a count does not depend on the order of rows.
    summed = rows.group_by(pl.all()).agg(count=pl.len()).sort(rows.columns)
    return _Battles(
        summed["first"].to_numpy(),
        summed["second"].to_numpy(),
        summed["value"].to_numpy(),
        summed["weight"].to_numpy() * summed["count"].to_numpy(),
        summed.select(*named).to_numpy() if named else np.zeros((summed.height, 0)),
    )


def _mode(model: _Model) -> tuple[Floats, Floats, int]:
    """θ and φ at the top of the posterior, and the rounds of Newton's method that led there."""
    theta, phi = np.zeros(len(model.level)), np.zeros(len(model.shared_precision))
    slopes = _slopes(model, theta, phi)
    height = _height(model, slopes, theta, phi)
    for rounds in range(1, _ROUNDS + 1):
        step = _step(model, _information(model, slopes), *_gradient(model, slopes, theta, phi))
        size = max(np.abs(part).max(initial=0.0) for part in step)
        fraction = 1.0
        while True:  # halve a step that overshoots; rounding alone is no reason to
            tried = theta + fraction * step[0], phi + fraction * step[1]
            slopes = _slopes(model, *tried)
            reached = _height(model, slopes, *tried)
            if reached >= height - 1e-12 * abs(height) or fraction * size < _SMALL_STEP:
                break
            fraction /= 2.0
        (theta, phi), height = tried, reached
        if size < _SMALL_STEP:
            return theta, phi, rounds
    raise ValueError(f"no strengths are likeliest after {_ROUNDS} rounds of Newton's method: give a narrower prior")


def _slopes(model: _Model, theta: Floats, phi: Floats) -> _Slopes:
    battles = model.battles
    effects = phi[model.levels : len(phi) - model.davidson]
    eta = theta[battles.first] - theta[battles.second] + np.einsum("bc,c->b", battles.covariates, effects)
    y, w = battles.value, battles.weight
    if not model.davidson:
        # y·η − log(1 + e^η)
        won = _sigmoid(eta)
        nothing = np.zeros(0)
        return _Slopes(
            w * (y * eta - np.logaddexp(0.0, eta)), w * (y - won), nothing, w * won * (1.0 - won), nothing, nothing
        )
    # (2y − 1)·η/2 + [tie]·δ − log(e^(η/2) + e^(−η/2) + e^δ)
    delta = phi[-1]
    total = np.logaddexp(np.logaddexp(eta / 2.0, -eta / 2.0), delta)
    won, lost, tied = np.exp(eta / 2.0 - total), np.exp(-eta / 2.0 - total), np.exp(delta - total)
    points, tie = 2.0 * y - 1.0, y == 0.5
    return _Slopes(
        height=w * (points * eta / 2.0 + tie * delta - total),
        eta=w * (points - (won - lost)) / 2.0,
        delta=w * (tie - tied),
        eta_eta=w * (won + lost - (won - lost) ** 2) / 4.0,
        eta_delta=-w * (won - lost) * tied / 2.0,
        delta_delta=w * tied * (1.0 - tied),
    )


def _height(model: _Model, slopes: _Slopes, theta: Floats, phi: Floats) -> float:
    """The log-posterior, up to a constant."""
    away = theta - _centres(model, phi)
    return float(
        np.sum(slopes.height) - 0.5 * np.sum(model.precision * away**2) - 0.5 * np.sum(model.shared_precision * phi**2)
    )


def _gradient(model: _Model, slopes: _Slopes, theta: Floats, phi: Floats) -> tuple[Floats, Floats]:
    battles, away = model.battles, theta - _centres(model, phi)
    by_theta = _to_contestants(model, slopes.eta) - model.precision * away
    by_effects = np.einsum("b,bc->c", slopes.eta, battles.covariates)
    by_tie = [slopes.delta.sum()] if model.davidson else []
    by_phi = np.concatenate([_to_levels(model, model.pull * away), by_effects, by_tie])
    return by_theta, by_phi - model.shared_precision * phi


def _information(model: _Model, slopes: _Slopes) -> _Information:
    battles, where, levels = model.battles, model.where, model.levels
    i, j, h = battles.first, battles.second, slopes.eta_eta
    n = len(model.level)
    around = np.concatenate([blocks.entry(where, i, j), blocks.entry(where, j, i)])
    a = sums(around, np.concatenate([-h, -h]), where.entries)
    a[where.start + where.local] = sums(i, h, n) + sums(j, h, n) + model.precision
    if not model.precision.any():
        a += 1.0 / max(n, 1)  # without a prior only differences are known: this fixes the mean (see _stds)
    inverse = blocks.invert(where, a)
    by_effect = [h * column for column in battles.covariates.T]  # ∂²/∂η∂γ
    by_effect += [slopes.eta_delta] if model.davidson else []
    cross = (
        np.stack([_to_contestants(model, column) for column in by_effect], axis=1) if by_effect else np.zeros((n, 0))
    )
    solved = blocks.multiply(where, inverse, cross)
    schur = np.diag(model.shared_precision)
    if levels:
        row, column = blocks.pairs(where)
        key = model.level[row] * levels + model.level[column]
        drawn = sums(key, inverse * model.pull[row] * model.pull[column], levels**2)
        schur[:levels, :levels] -= drawn.reshape(levels, levels)
        schur[np.arange(levels), np.arange(levels)] += _to_levels(model, model.pull)
        for c in range(solved.shape[1]):
            schur[:levels, levels + c] = schur[levels + c, :levels] = _to_levels(model, model.pull * solved[:, c])
    schur[levels:, levels:] += _effect_information(battles, slopes, model.davidson) - np.einsum(
        "np,nq->pq", cross, solved
    )
    return _Information(inverse, cross, solved, blocks.sweep(schur[None])[0])


def _effect_information(battles: _Battles, slopes: _Slopes, davidson: bool) -> Floats:
    """C of the effects and log ν: Σ h·x·xᵀ, bordered by the derivatives by δ."""
    x = battles.covariates
    c = np.einsum("b,bp,bq->pq", slopes.eta_eta, x, x)
    if not davidson:
        return c
    border = np.einsum("b,bp->p", slopes.eta_delta, x)
    return np.block([[c, border[:, None]], [border[None], slopes.delta_delta.sum()[None, None]]])


def _step(model: _Model, known: _Information, by_theta: Floats, by_phi: Floats) -> tuple[Floats, Floats]:
    """The solution of information · step = gradient."""
    levels = model.levels
    moved = blocks.multiply(model.where, known.inverse, by_theta[:, None])[:, 0]
    pushed = np.concatenate([-_to_levels(model, model.pull * moved), np.einsum("nq,n->q", known.cross, moved)])
    phi = np.einsum("pq,q->p", known.covariance, by_phi - pushed)
    left = by_theta + model.pull * _centres(model, phi) - np.einsum("nq,q->n", known.cross, phi[levels:])
    return blocks.multiply(model.where, known.inverse, left[:, None])[:, 0], phi


def _stds(model: _Model, known: _Information) -> tuple[Floats, Floats]:
    """The roots of the diagonal of the inverse information, of θ and of φ."""
    n, levels = len(model.level), model.levels
    variance = blocks.diagonal(model.where, known.inverse)
    if not model.precision.any():
        variance = variance - 1.0 / max(n, 1)  # what fixed the mean is no information
    # Through φ: the diagonal of (A⁻¹ B) covariance (A⁻¹ B)ᵀ, block by block.
    effects = np.arange(levels, len(known.covariance))
    for (k, count, first, _), block in zip(model.where.runs, blocks.views(model.where, known.inverse), strict=True):
        members = slice(first, first + k * count)
        through = known.solved[members].reshape(count, k, -1)
        index = np.tile(effects, (count, 1))
        if levels:
            level, pull = model.level[members].reshape(count, k), model.pull[members].reshape(count, 1, k)
            through = np.concatenate([-block * pull, through], axis=2)
            index = np.concatenate([level, index], axis=1)
        between = known.covariance[index[:, :, None], index[:, None, :]]
        variance[members] += np.einsum("gip,gip->gi", np.einsum("giq,gqp->gip", through, between), through).ravel()
    return np.sqrt(variance), np.sqrt(np.diagonal(known.covariance))


def _centres(model: _Model, phi: Floats) -> Floats:
    """(n,) where the prior of each strength is centred."""
    if not model.levels:
        return np.zeros(len(model.level))
    return np.where(model.pull > 0.0, phi[: model.levels][model.level], 0.0)


def _to_contestants(model: _Model, by_eta: Floats) -> Floats:
    """(n,) derivatives by θ out of those by η = θ_first − θ_second + x·γ."""
    n = len(model.level)
    first, second = model.battles.first, model.battles.second
    return sums(first, by_eta, n) - sums(second, by_eta, n)


def _to_levels(model: _Model, by_contestant: Floats) -> Floats:
    """(levels,) sums over the members of each level; who has none must have 0."""
    return sums(model.level, by_contestant, model.levels)[: model.levels]


def _sigmoid(eta: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -eta))
