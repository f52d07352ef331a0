"""Bradley–Terry strengths: against another implementation, against simulated truth, and in ill cases."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.rate import blocks
from rlhf_data.rate.bradley_terry import TIES, Strengths, fit
from rlhf_data.rate.components import connected

few = settings(deadline=None, max_examples=20)
NINETY = 1.6448536269514722  # standard errors on either side of the mean hold 90 % of a normal distribution


def tournament(rng: np.random.Generator, strength: np.ndarray, battles: int):
    """Random battles by the Bradley–Terry model: who, whom, and 1.0 where the first won."""
    n = len(strength)
    first = rng.integers(0, n, battles)
    second = (first + rng.integers(1, n, battles)) % n
    won = rng.random(battles) < 1.0 / (1.0 + np.exp(strength[second] - strength[first]))
    return first, second, won.astype(float)


def by_choix(first, second, value, n: int, alpha: float) -> np.ndarray:
    import choix  # brings SciPy: two seconds of the start of every test process

    won = [(i, j) if v else (j, i) for i, j, v in zip(first.tolist(), second.tolist(), value.tolist(), strict=True)]
    return choix.opt_pairwise(n, won, alpha=alpha, tol=1e-12)


def same(a: Strengths, b: Strengths, **tolerance) -> None:
    for name, left, right in zip(Strengths._fields, a, b, strict=True):
        if name != "rounds" and left is not None:
            np.testing.assert_allclose(left, right, err_msg=name, **{"rtol": 0, "atol": 0} | tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_maximum_likelihood_is_that_of_choix(seed):
    rng = np.random.default_rng(seed)
    battles = tournament(rng, rng.normal(size=12), 400)
    theirs = by_choix(*battles, 12, alpha=0.0)
    np.testing.assert_allclose(fit(*battles, 12, sd=None).strength, theirs - theirs.mean(), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 5.0])
def test_the_mode_under_a_gaussian_prior_is_that_of_choix(alpha):
    rng = np.random.default_rng(1)
    battles = tournament(rng, rng.normal(size=12), 200)
    theirs = by_choix(*battles, 12, alpha=alpha)
    # choix takes alpha · Σ θ² off the log-likelihood, which is a prior of variance 1 / (2 alpha)
    np.testing.assert_allclose(fit(*battles, 12, sd=(2.0 * alpha) ** -0.5).strength, theirs, atol=1e-6)


def test_two_that_met_differ_by_the_log_odds_of_their_battles():
    found = fit([0, 0, 0, 1], [1, 1, 1, 0], [1.0, 1.0, 1.0, 1.0], 2, sd=None)
    # won 3 of 4: ln 3 apart; the variance of the difference is 1/3 + 1/1, and each strength is half of it
    np.testing.assert_allclose(found.strength, [math.log(3) / 2, -math.log(3) / 2], atol=1e-12)
    np.testing.assert_allclose(found.std, math.sqrt(4 / 3) / 2, atol=1e-12)


def test_intervals_of_ninety_percent_hold_ninety_percent_of_the_strengths():
    rng = np.random.default_rng(2026)
    arenas, n, battles = 120, 50, 700
    truth = rng.normal(scale=1.5, size=(arenas, n))
    played = [tournament(rng, truth[a], battles) for a in range(arenas)]
    first, second = (np.concatenate([a * n + game[side] for a, game in enumerate(played)]) for side in (0, 1))
    found = fit(first, second, np.concatenate([game[2] for game in played]), arenas * n, sd=1.5)
    held = np.abs(found.strength - truth.ravel()) <= NINETY * found.std
    assert held.size == 6000
    assert 0.88 <= held.mean() <= 0.92


def test_answers_that_lean_on_their_model_are_nearer_the_truth_and_their_intervals_hold():
    """Four answers to a prompt and each pair judged once: three battles an answer say little without the model."""
    rng = np.random.default_rng(7)
    arenas, models, prompts = 30, 8, 100
    level = rng.normal(scale=2.0, size=(arenas, models))
    wrote = np.stack([[rng.permutation(models)[:4] + a * models for _ in range(prompts)] for a in range(arenas)])
    truth = rng.normal(level.ravel()[wrote], 1.0).ravel()
    base = np.arange(0, truth.size, 4)[:, None]
    first, second = ((base + np.array(side)).ravel() for side in zip(*itertools.combinations(range(4), 2), strict=True))
    won = (rng.random(len(first)) < 1.0 / (1.0 + np.exp(truth[second] - truth[first]))).astype(float)
    leaning = fit(first, second, won, truth.size, level=wrote.ravel(), sd=1.0, level_sd=2.0)
    alone = fit(first, second, won, truth.size, sd=math.hypot(1.0, 2.0))
    assert truth.size == 12_000
    # the mode is a little nearer 0 than the mean where answers meet this seldom
    assert 0.87 <= (np.abs(leaning.strength - truth) <= NINETY * leaning.std).mean() <= 0.92
    assert 0.85 <= (np.abs(leaning.level - level.ravel()) <= NINETY * leaning.level_std).mean() <= 0.95
    assert np.square(leaning.strength - truth).mean() < 0.7 * np.square(alone.strength - truth).mean()


@pytest.mark.parametrize("ties", TIES)
def test_strengths_levels_effects_and_ties_are_at_the_top_of_the_posterior(ties):
    rng = np.random.default_rng(5)
    n, battles = 8, 120
    first, second, _ = tournament(rng, np.zeros(n), battles)
    value, x = rng.choice([0.0, 0.5, 1.0], battles), rng.normal(size=(battles, 2))
    level = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    found = fit(first, second, value, n, covariates=x, ties=ties, level=level, sd=0.7, level_sd=1.5, effect_sd=3.0)

    def height(theta, mu, gamma, delta):
        eta = theta[first] - theta[second] + x @ gamma
        if ties == "half":
            likelihood = value * eta - np.log1p(np.exp(eta))
        else:
            odds = np.exp(np.stack([eta / 2, -eta / 2, np.full(battles, delta)]))
            outcome = np.where(value == 1, 0, np.where(value == 0, 1, 2))
            likelihood = np.log(odds[outcome, np.arange(battles)] / odds.sum(axis=0))
        centre, spread = np.append(mu, 0.0)[level], np.where(level < 0, math.hypot(0.7, 1.5), 0.7)
        priors = ((theta - centre) / spread, mu / 1.5, gamma / 3.0, delta / 3.0)
        return likelihood.sum() - 0.5 * sum(np.sum(np.square(part)) for part in priors)

    delta = found.tie if found.tie is not None else 0.0
    top = np.concatenate([found.strength, found.level, found.effect, [delta]])
    at = np.split(np.eye(len(top)), len(top))
    parts = [n, n + 3, n + 5]
    density = lambda p: height(*np.split(p, parts)[:3], np.split(p, parts)[3][0])  # noqa: E731
    small = 1e-4
    slope = [(density(top + small * e[0]) - density(top - small * e[0])) / (2 * small) for e in at]
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    hessian = [
        [
            (density(top + s) - density(top + d) - density(top - d) + density(top - s)) / (4 * small**2)
            for s, d in ((small * (e[0] + f[0]), small * (e[0] - f[0])) for f in at)
        ]
        for e in at
    ]
    std = np.sqrt(np.diagonal(np.linalg.inv(-np.array(hessian))))
    ours = np.concatenate([found.std, found.level_std, found.effect_std, [found.tie_std or 3.0]])
    np.testing.assert_allclose(ours, std, atol=1e-4)


def test_an_effect_of_position_is_told_from_strength():
    rng = np.random.default_rng(11)
    truth, n, battles = rng.normal(size=10), 10, 20_000
    first, second, _ = tournament(rng, truth, battles)
    shown_first = rng.choice([1.0, -1.0], battles)
    odds = truth[first] - truth[second] + 0.6 * shown_first
    won = (rng.random(battles) < 1.0 / (1.0 + np.exp(-odds))).astype(float)
    found = fit(first, second, won, n, covariates=shown_first[:, None])
    assert abs(found.effect[0] - 0.6) < 3 * found.effect_std[0]
    assert found.effect_std[0] < 0.03


def test_davidsons_ties_are_as_likely_as_simulated():
    rng = np.random.default_rng(12)
    truth, battles, nu = rng.normal(size=10), 20_000, 1.5
    first, second, _ = tournament(rng, truth, battles)
    half = (truth[first] - truth[second]) / 2
    odds = np.stack([np.exp(-half), np.full(battles, nu), np.exp(half)])
    value = (rng.random(battles) > np.cumsum(odds / odds.sum(axis=0), axis=0)).sum(axis=0) / 2
    found = fit(first, second, value, 10, ties="davidson")
    assert found.tie is not None and found.tie_std is not None
    assert abs(found.tie - math.log(nu)) < 3 * found.tie_std
    assert np.abs(found.strength - (truth - truth.mean())).max() < 0.15


battle = st.tuples(
    st.permutations(range(5)).map(lambda p: (p[0], p[1])),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1.0, 0.3, 2.0]),
    st.sampled_from([-1.0, 0.0, 1.0]),
)


@pytest.mark.parametrize("ties", TIES)
@few
@given(battles=st.lists(battle, min_size=1, max_size=12), data=st.data())
def test_neither_the_order_of_battles_nor_who_is_named_first_changes_a_digit(ties, battles, data):
    def strengths(rows):
        (first, second), value, weight, x = zip(*(r[0] for r in rows), strict=True), *list(zip(*rows, strict=True))[1:]
        return fit(first, second, value, 5, weight=weight, covariates=np.array(x)[:, None], ties=ties)

    turned = [
        ((j, i), 1.0 - v, w, -x) if data.draw(st.booleans()) else ((i, j), v, w, x) for (i, j), v, w, x in battles
    ]
    same(strengths(battles), strengths(data.draw(st.permutations(turned))))


@few
@given(st.lists(battle, min_size=1, max_size=10))
def test_a_battle_of_weight_three_is_three_battles(battles):
    pairs, value, _, _ = zip(*battles, strict=True)
    first, second = np.array(pairs).T
    thrice = fit(np.tile(first, 3), np.tile(second, 3), np.tile(value, 3), 5)
    same(fit(first, second, value, 5, weight=np.full(len(first), 3.0)), thrice, atol=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_without_battles_everyone_stands_at_the_prior(ties):
    found = fit([], [], [], 3, ties=ties, sd=2.0)
    assert found.strength.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found.std, 2.0)
    led = fit([], [], [], 3, level=[0, 0, -1], sd=1.0, level_sd=2.0)
    np.testing.assert_allclose(led.std, math.hypot(1.0, 2.0))
    assert fit([], [], [], 0).strength.shape == (0,)


def test_who_met_nobody_stands_at_the_prior_and_who_always_won_has_a_finite_strength():
    found = fit([0] * 50, [1] * 50, [1.0] * 50, 3, sd=2.0)
    assert found.strength[2] == 0.0
    np.testing.assert_allclose(found.std[2], 2.0)
    assert 2.0 < found.strength[0] == -found.strength[1] < 10.0


def test_an_answer_that_met_nobody_stands_at_the_level_of_its_model():
    found = fit([0, 2] * 20, [1, 3] * 20, [1.0] * 40, 5, level=[0, 1, 0, 1, 0], sd=1.0)
    assert found.strength[4] == pytest.approx(found.level[0]) and found.level[0] > 0.5
    assert found.strength[0] > found.strength[4]


@pytest.mark.parametrize(
    ("first", "second", "value", "apart"),
    [
        ([0, 2], [1, 3], [0.5, 0.5], r"\(a, b\); \(c, d\)"),  # two islands
        ([0, 1, 2, 0], [1, 2, 0, 3], [1.0, 1.0, 1.0, 1.0], r"\(a, b, c\); \(d\)"),  # d only loses
        ([0, 1, 2], [1, 2, 0], [1.0, 1.0, 1.0], r"\(a, b, c\); \(d\)"),  # d meets nobody
    ],
)
def test_maximum_likelihood_that_does_not_exist_names_who_is_apart(first, second, value, apart):
    with pytest.raises(ValueError, match=apart + ": give a prior"):
        fit(first, second, value, 4, sd=None, names=list("abcd"))
    assert np.isfinite(fit(first, second, value, 4).strength).all()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"value": [math.nan, 1.0]}, "1 of 2 battles have a value that is no probability"),
        ({"value": [1.5, 1.0]}, "no probability"),
        ({"weight": [0.0, 1.0]}, "weight that is not positive"),
        ({"covariates": [[math.inf], [0.0]]}, "covariate that is not finite"),
        ({"second": [1, 3]}, "beside 0 to n − 1; the first is number 1"),
        ({"second": [0, 2]}, "meets itself"),
        ({"second": [1]}, "each battle needs one of each"),
        ({"ties": "never"}, "no ties named 'never'; known: half, davidson"),
        ({"ties": "davidson", "value": [0.7, 1.0]}, "1 of 2 values are none of 0, 0.5 and 1; say ties: half"),
        ({"level": [0, 0, 0], "sd": None}, "levels need a prior"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong, what):
    with pytest.raises(ValueError, match=what):
        fit(**{"first": [0, 1], "second": [1, 2], "value": [1.0, 0.0], "n": 3, **wrong})


def test_a_group_too_large_to_invert_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(blocks, "LARGEST", 3)
    with pytest.raises(ValueError, match="4 of 5 are connected by battles; at most 3"):
        fit([0, 1, 2], [1, 2, 3], [1.0, 1.0, 1.0], 5)


def test_the_number_of_threads_changes_no_digit():
    code = (
        "import numpy as np; from rlhf_data.rate.bradley_terry import fit; r = np.random.default_rng(0); "
        "i = r.integers(0, 300, 20000); j = (i + r.integers(1, 300, 20000)) % 300; "
        "s = fit(i, j, r.random(20000), 300, covariates=r.normal(size=(20000, 2))); "
        "print(s.strength.tobytes().hex(), s.std.tobytes().hex(), s.effect.tobytes().hex())"
    )
    digits = set()
    for threads in ("1", "2"):
        limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS"), threads)
        where = {"cwd": Path(__file__).parents[2], "env": {**os.environ, **limits}}
        digits.add(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, **where).stdout)
    assert len(digits) == 1


@few
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_components_are_those_of_a_search(edges):
    first, second = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    smallest = list(range(10))
    for _ in range(10):
        for i, j in edges:
            smallest[i] = smallest[j] = min(smallest[i], smallest[j])
    assert connected(10, first, second).tolist() == smallest


@pytest.mark.parametrize("k", [1, 2, 5, 32, 33, 100])
def test_blocks_are_inverted(k):
    rng = np.random.default_rng(k)
    roots = rng.normal(size=(3, k, k + 3))
    matrices = roots @ roots.transpose(0, 2, 1)
    inverse = blocks.sweep(matrices.copy())
    np.testing.assert_allclose(inverse @ matrices, np.broadcast_to(np.eye(k), (3, k, k)), atol=1e-8)


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_blocks_lie_where_their_layout_says(groups):
    where = blocks.layout(np.array(groups))
    rows, columns = blocks.pairs(where)
    assert (np.array(groups)[where.order][rows] == np.array(groups)[where.order][columns]).all()
    assert blocks.entry(where, rows, columns).tolist() == list(range(where.entries))
    assert where.order[where.place].tolist() == list(range(len(groups)))
