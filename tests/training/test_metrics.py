"""What a line of metrics says, against the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.rules import Completions, Pairs, PairWeights
from rlhf_data.training.batches import Rows
from rlhf_data.training.metrics import step_metrics


def rows_of(sources: list[str]) -> Rows:
    ids = [str(k) for k in range(len(sources))]
    return Rows(ids, [], [], {"source": sources, "category": [None] * len(sources)}, {})


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def measured(ratios: list[float], weights: list[float], w: list[float], sources: list[str] | None = None):
    n = len(ratios)
    batch = Completions(
        policy_logps=doubles(*ratios) - 5.0,
        ref_logps=doubles(*[-5.0] * n),
        weight=doubles(*weights),
        reward=doubles(*map(float, range(n))),
    )
    rows = rows_of(sources or ["a"] * n)
    return step_metrics(batch, doubles(*w), rows, range(n), "vpg", {"baseline": 0.0}, {})


def test_the_estimators_of_kl_are_what_they_are_called():
    line = measured([0.5, -1.0], [1.0, 3.0], [1.0, 1.0])
    assert line["kl_k1"] == pytest.approx((0.5 - 3.0) / 4)
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    assert line["kl_k3"] == pytest.approx((k3[0] + 3 * k3[1]) / 4)
    assert line["reward"] == pytest.approx(3 / 4) and line["row_weight"] == 2.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6))
def test_k3_is_finite_and_never_negative(ratios):
    line = measured(ratios, [1.0] * len(ratios), [1.0] * len(ratios))
    assert 0 <= line["kl_k3"] < math.inf


def test_the_median_of_log_ratios_is_their_median():
    line = measured([3.0, -1.0, 0.0], [1.0] * 3, [1.0] * 3)
    assert line["log_ratio_p50"] == 0.0
    assert -1.0 <= line["log_ratio_p5"] < line["log_ratio_p50"] < line["log_ratio_p95"] <= 3.0


@pytest.mark.parametrize(
    ("w", "weights", "ess", "zero"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.0] * 4, 1.0, 0.0),
        ([1.0, -1.0, 1.0, -1.0], [2.0] * 4, 1.0, 0.0),
        ([1.0, 0.0, 0.0, 0.0], [1.0] * 4, 0.25, 0.75),
        ([1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 0.0, 0.0], 16 / 10 / 4, 0.5),
        ([0.0, 0.0], [1.0] * 2, 0.0, 1.0),
    ],
)
def test_effective_rows_and_rows_that_push_nothing_are_of_the_rules_weights_times_the_rows(w, weights, ess, zero):
    line = measured([0.0] * len(w), weights, w)
    assert (line["w_ess"], line["w_zero"]) == (pytest.approx(ess), zero)


def test_a_source_has_the_figures_of_its_own_rows():
    line = measured([0.5, -1.0, 2.0], [1.0] * 3, [1.0, 0.0, 1.0], ["a", "b", "a"])
    alone = measured([-1.0], [1.0], [0.0])
    part = line["by_source"]["b"]
    assert part["rows"] == 1 and part["w_zero"] == 1.0
    assert part["kl_k3"] == alone["kl_k3"] and part["log_ratio_p95"] == -1.0
    assert line["rows"] == 3 and line["by_source"]["a"]["log_ratio"] == pytest.approx(1.25)


def test_of_a_reward_model_the_quantiles_are_of_the_margins_of_its_scores():
    zeros, ones = doubles(*[0.0] * 5), doubles(*[1.0] * 5)
    batch = Pairs(
        policy_chosen_logps=zeros,
        policy_rejected_logps=zeros,
        weight=ones,
        preference=ones,
        chosen_score=doubles(3.0, 0.0, 1.0, 2.0, 4.0),
        rejected_score=ones,
    )
    line = step_metrics(batch, PairWeights(ones, ones), rows_of(["a"] * 5), range(5), "rm", {}, {})
    # Margins −1 to 3: the 5 % quantile of five values is a fifth of the way from the first to the second.
    found = [line[f"score_margin_p{q}"] for q in (5, 50, 95)]
    assert found == pytest.approx([-0.8, 1.0, 2.8]) and line["score_margin"] == 1.0


def test_of_pairs_both_sides_count_as_one_weight_and_as_two_completions():
    batch = Pairs(
        policy_chosen_logps=doubles(-4.0, -5.0),
        policy_rejected_logps=doubles(-5.0, -5.0),
        ref_chosen_logps=doubles(-5.0, -5.0),
        ref_rejected_logps=doubles(-5.0, -4.0),
        weight=doubles(1.0, 1.0),
        preference=doubles(1.0, 1.0),
    )
    weights = PairWeights(doubles(0.1, 0.0), doubles(0.1, 0.2))
    line = step_metrics(batch, weights, rows_of(["a", "a"]), range(2), "dpo", {"beta": 0.1}, {})
    assert line["kl_k1"] == pytest.approx((1.0 + 0.0 + 0.0 - 1.0) / 4)
    assert line["w_ess"] == pytest.approx(1.0) and line["w_zero"] == 0.0
    assert line["log_ratio_margin_p50"] == pytest.approx(1.0) and line["accuracy"] == 1.0
