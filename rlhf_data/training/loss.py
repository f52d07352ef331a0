"""From a rule's weights to the number that autograd sees: the only place that detaches."""

from torch import Tensor

from rlhf_data.rules import Completions, Pairs, PairWeights


def weighted_loss(batch: Pairs | Completions, weights: PairWeights | Tensor, *, normaliser: float) -> Tensor:
    """−Σ row weight · (w₊ log π(y₊) − w₋ log π(y₋)) / normaliser, a scalar.

    The rule's weights are constants to autograd, so the gradient is that of the published loss, weighted by row. The
    value itself means nothing; `rules.loss` has the number to report.

    Args:
        batch: log-probs with their graph, and row weights, each (n,).
        weights: what the rule gave for these rows.
        normaliser: sum of the row weights of the whole optimizer step, of which this batch may be a part.

    Raises:
        ValueError: weights of another shape than the batch, or a normaliser that is not > 0.
    """
    if not normaliser > 0:
        raise ValueError(f"the row weights of this step sum to {normaliser}: at least one row must have weight > 0")
    if isinstance(batch, Pairs):
        assert isinstance(weights, PairWeights)
        chosen = _push(weights.chosen, batch.policy_chosen_logps)
        return -(batch.weight * (chosen - _push(weights.rejected, batch.policy_rejected_logps))).sum() / normaliser
    assert isinstance(weights, Tensor)
    return -(batch.weight * _push(weights, batch.policy_logps)).sum() / normaliser


def _push(weights: Tensor, logps: Tensor) -> Tensor:
    if weights.shape != logps.shape:
        raise ValueError(f"the rule gave {tuple(weights.shape)} weights for log-probs {tuple(logps.shape)}")
    return weights.detach() * logps
