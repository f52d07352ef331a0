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

QUANTILES = (0.05, 0.5, 0.95)


def step_metrics(
    batch: Pairs | Completions,
    weights: Weights,
    rows: Rows,
    picked: Sequence[int],
    rule: rules.Rule,
    parameters: dict[str, Any],
    memory: dict[str, float],
) -> dict[str, Any]:
    """Figures of a step, rows counted by their weight; `by_source` and `by_category` hold the same for parts of it.

    loss is the rule's published loss. Where references are there, log-ratios are in nats, without beta; accuracy is
    the share of pairs whose log-ratio margin is > 0, half of those where it is 0; of a reward model, scores and their
    margin stand in the log-ratios' place. The weights of a row's tokens count
    as their mean. `memory` is what the rule remembers after this step, where it remembers anything.

    Quantiles (`_p5`, `_p50`, `_p95`) are of the log-ratio margin of pairs, the margin of a reward model's scores, or
    the log-ratio of completions. kl_k1 is the mean of log π/π_ref over all completions, and kl_k3 that of
    π_ref/π − 1 + log π/π_ref, which is never negative: both estimate KL(π ‖ π_ref) without bias where π itself wrote
    the completions, and only say how far it has moved where it did not. w_ess is the effective sample size of the
    rule's weights times the rows' own, (Σ|w|)²/Σw², as a share of the rows (of pairs, |w| is the mean of both sides),
    and w_zero the share of rows that push nothing.
    """
    values = {"loss": rules.loss(rule, **parameters)(batch, memory)} | _weights(batch, weights) | _log_ratios(batch)
    if isinstance(batch, Completions) and batch.reward is not None:
        values["reward"] = batch.reward
    values = {name: value.detach().cpu() for name, value in values.items()}  # of a GPU, all at once and not one by one
    weight = batch.weight.cpu()
    whole = _part(values, weight, range(len(picked)))
    for column in ("source", "category"):
        names = [rows.columns[column][i] for i in picked]
        kinds = sorted({name for name in names if name is not None})
        if len(kinds) > 1:
            parts = {kind: [i for i, name in enumerate(names) if name == kind] for kind in kinds}
            whole[f"by_{column}"] = {kind: _part(values, weight, at) for kind, at in parts.items()}
    whole |= {"memory": memory} if memory else {}
    return whole | {"row_weight": float(weight.mean())}


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


def _part(values: dict[str, Tensor], weight: Tensor, at: Sequence[int]) -> dict[str, Any]:
    """The figures of the rows `at`."""
    here, held = {name: value[list(at)] for name, value in values.items()}, weight[list(at)]
    found = {name: _mean(value, held) for name, value in here.items()}
    return found | _quantiles(here) | _kl(here, held) | _spread(here, held) | {"rows": len(at)}


def _quantiles(values: dict[str, Tensor]) -> dict[str, float]:
    name = next((name for name in ("log_ratio_margin", "score_margin", "log_ratio") if name in values), None)
    if name is None:
        return {}
    found = torch.quantile(
        values[name].detach().double(), torch.tensor(QUANTILES, dtype=torch.float64).to(values[name].device)
    )
    return {f"{name}_p{round(100 * q)}": float(value) for q, value in zip(QUANTILES, found, strict=True)}


def _kl(values: dict[str, Tensor], weight: Tensor) -> dict[str, float]:
    sides = [values[name] for name in ("chosen_log_ratio", "rejected_log_ratio", "log_ratio") if name in values]
    if not sides:
        return {}
    ratio, weights = torch.cat(sides).double(), weight.double().repeat(len(sides))
    # e^20 stands for what is larger: one completion that the policy would never write must not hide all others
    k3 = (-ratio).clamp(max=20.0).expm1() + ratio
    return {"kl_k1": _mean(ratio, weights), "kl_k3": _mean(k3, weights)}


def _spread(values: dict[str, Tensor], weight: Tensor) -> dict[str, float]:
    sides = [values[name].double().abs() for name in ("w_chosen", "w_rejected", "w") if name in values]
    size = torch.stack(sides).mean(dim=0) * weight
    squares = float((size**2).sum())
    ess = float(size.sum()) ** 2 / squares / len(size) if squares else 0.0
    return {"w_ess": ess, "w_zero": float((size == 0).double().mean())}


def _mean(values: Tensor, weight: Tensor) -> float:
    return float((values * weight).sum() / weight.sum())
