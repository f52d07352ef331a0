"""`weighted_loss` refuses what would not mean what it says."""

import pytest
import torch

from rlhf_data.rules import Completions, Pairs, PairWeights
from rlhf_data.training.loss import weighted_loss

ONES = torch.ones(3)


def test_a_pair_is_pushed_apart_by_its_weights():
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    weights = PairWeights(chosen=torch.tensor([1.0, 2.0, 3.0]), rejected=torch.tensor([4.0, 5.0, 6.0]))
    batch = Pairs(chosen, rejected, weight=torch.tensor([1.0, 0.0, 2.0]))
    weighted_loss(batch, weights, normaliser=3.0).backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (-chosen.grad * 3).tolist() == [1, 0, 6]
    assert (rejected.grad * 3).tolist() == [4, 0, 12]


def test_weights_are_constants_to_autograd():
    logps = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weighted_loss(Completions(logps, ONES), logps * 5, normaliser=1.0).backward()
    assert logps.grad is not None and (-logps.grad).tolist() == [5, 10, 15]


def test_one_weight_for_many_rows_is_refused():
    with pytest.raises(ValueError, match=r"\(1,\) weights for log-probs \(3,\)"):
        weighted_loss(Completions(ONES, ONES), ONES[:1], normaliser=1.0)


@pytest.mark.parametrize("normaliser", [0.0, -1.0, float("nan")])
def test_a_step_without_weight_is_refused(normaliser):
    with pytest.raises(ValueError, match="at least one row must have weight > 0"):
        weighted_loss(Completions(ONES, ONES), ONES, normaliser=normaliser)
