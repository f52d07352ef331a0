"""What a training step did, as one line of JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_data import files, rules
from rlhf_data.rules import Completions, Pairs, PairTokenWeights, PairWeights, TokenWeights
from rlhf_data.rules.batch import given, per_row
from rlhf_data.training.batches import Rows
from rlhf_data.training.loss import Weights


def step_metrics(
    batch: Pairs | Completions,
    weights: Weights,
    rows: Rows,
    picked: Sequence[int],
    rule: rules.Rule,
    parameters: dict[str, Any],
    memory: dict[str, float],
) -> dict[str, Any]:
    """Means over a step, rows counted by their weight; `by_source` and `by_category` hold the same for parts of it.

    loss is the rule's published loss. Where references are there, log-ratios are in nats, without beta; accuracy is
    the share of pairs whose log-ratio margin is > 0, half of those where it is 0; of a reward model, scores and their
    margin stand in the log-ratios' place. The weights of a row's tokens count
    as their mean. `memory` is what the rule remembers after this step, where it remembers anything.
    """
    values = {"loss": rules.loss(rule, **parameters)(batch, memory)} | _weights(batch, weights) | _log_ratios(batch)
    whole: dict[str, Any] = {name: _mean(value, batch.weight) for name, value in values.items()}
    for column in ("source", "category"):
        names = [rows.columns[column][i] for i in picked]
        kinds = sorted({name for name in names if name is not None})
        if len(kinds) > 1:
            whole[f"by_{column}"] = {kind: _part(values, batch.weight, [n == kind for n in names]) for kind in kinds}
    whole |= {"memory": memory} if memory else {}
    return whole | {"row_weight": float(batch.weight.mean()), "rows": len(picked)}


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step: a run that resumes writes them again."""
    if path.is_file():
        lines = path.read_text().split("\n")[:-1]  # what follows the last newline is a line that a kill cut short
        files.write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def _weights(batch: Pairs | Completions, weights: Weights) -> dict[str, Tensor]:
    if isinstance(weights, PairTokenWeights):
        chosen = _row_means(batch, weights.chosen, "chosen_token_row")
        return {"w_chosen": chosen, "w_rejected": _row_means(batch, weights.rejected, "rejected_token_row")}
    if isinstance(weights, TokenWeights):
        return {"w": _row_means(batch, weights.tokens, "token_row")}
    if isinstance(weights, PairWeights):
        return {"w_chosen": weights.chosen, "w_rejected": weights.rejected}
    return {"w": weights}


def _row_means(batch: Pairs | Completions, values: Tensor, name: str) -> Tensor:
    row = given(batch, name)
    return per_row(values, row, batch.weight) / per_row(torch.ones_like(values), row, batch.weight)


def _log_ratios(batch: Pairs | Completions) -> dict[str, Tensor]:
    if isinstance(batch, Pairs):
        if batch.chosen_score is not None:
            return _scores(batch)
        if batch.ref_chosen_logps is None:
            return {}
        margin = batch.log_ratio_margin
        return {
            "chosen_log_ratio": batch.chosen_log_ratio,
            "rejected_log_ratio": batch.rejected_log_ratio,
            "log_ratio_margin": margin,
            "accuracy": (margin > 0).double() + (margin == 0).double() / 2,
        }
    ratios = {} if batch.ref_logps is None else {"log_ratio": batch.log_ratio}
    if batch.ref_mismatched_logps is not None:
        ratios["mismatched_log_ratio"] = batch.mismatched_log_ratio
    return ratios


def _scores(batch: Pairs) -> dict[str, Tensor]:
    chosen, rejected = given(batch, "chosen_score"), given(batch, "rejected_score")
    right = (chosen > rejected).double() + (chosen == rejected).double() / 2
    return {"chosen_score": chosen, "rejected_score": rejected, "score_margin": chosen - rejected, "accuracy": right}


def _part(values: dict[str, Tensor], weight: Tensor, member: list[bool]) -> dict[str, Any]:
    at = [i for i, inside in enumerate(member) if inside]
    return {name: _mean(value[at], weight[at]) for name, value in values.items()} | {"rows": len(at)}


def _mean(values: Tensor, weight: Tensor) -> float:
    return float((values * weight).sum() / weight.sum())
