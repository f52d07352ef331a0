"""From a rule's weights to the number that autograd sees: the only place that detaches."""

from torch import Tensor

from rlhf_data.rules import Completions, Pairs, PairTokenWeights, PairWeights, TokenWeights
from rlhf_data.rules.batch import given

Weights = PairWeights | PairTokenWeights | TokenWeights | Tensor


def weighted_loss(batch: Pairs | Completions, weights: Weights, *, normaliser: float) -> Tensor:
    """−Σ row weight · (w₊ log π(y₊) − w₋ log π(y₋)) / normaliser, a scalar; token by token where weights are of tokens.

    The rule's weights are constants to autograd, so the gradient is that of the published loss, weighted by row. The
    value itself means nothing; `rules.loss` has the number to report. Pairs that hold the scores of a reward head are
    pushed by their scores.

    Args:
        batch: log-probs with their graph, and row weights, each (n,).
        weights: what the rule gave for these rows.
        normaliser: sum of the row weights of the whole optimizer step, of which this batch may be a part.

    Raises:
        ValueError: weights of another kind or shape than the batch, or a normaliser that is not > 0.
    """
    if not normaliser > 0:
        raise ValueError(f"the row weights of this step sum to {normaliser}: at least one row must have weight > 0")
    if isinstance(batch, Pairs) != isinstance(weights, PairWeights | PairTokenWeights):
        wanted = "PairWeights" if isinstance(batch, Pairs) else "one tensor, or TokenWeights"
        raise ValueError(f"the rule gave {type(weights).__name__} for {type(batch).__name__}: it must give {wanted}")
    if isinstance(weights, PairTokenWeights):
        chosen = _push_tokens(batch, weights.chosen, "policy_chosen_token_logps", "chosen_token_row")
        return (_push_tokens(batch, weights.rejected, "policy_rejected_token_logps", "rejected_token_row") - chosen) / (
            normaliser
        )
    if isinstance(weights, TokenWeights):
        return -_push_tokens(batch, weights.tokens, "policy_token_logps", "token_row") / normaliser
    if isinstance(batch, Pairs):
        assert isinstance(weights, PairWeights)
        scored = batch.chosen_score is not None and batch.rejected_score is not None
        chosen = _push(weights.chosen, given(batch, "chosen_score") if scored else batch.policy_chosen_logps)
        rejected = _push(weights.rejected, given(batch, "rejected_score") if scored else batch.policy_rejected_logps)
        return -(batch.weight * (chosen - rejected)).sum() / normaliser
    assert isinstance(weights, Tensor)
    return -(batch.weight * _push(weights, batch.policy_logps)).sum() / normaliser


def _push_tokens(batch: Pairs | Completions, weights: Tensor, logps: str, row: str) -> Tensor:
    return (batch.weight[given(batch, row)] * _push(weights, given(batch, logps))).sum()


def _push(weights: Tensor, logps: Tensor) -> Tensor:
    if weights.shape != logps.shape:
        raise ValueError(f"the rule gave {tuple(weights.shape)} weights for log-probs {tuple(logps.shape)}")
    return weights.detach() * logps
