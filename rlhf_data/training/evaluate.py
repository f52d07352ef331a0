"""Judging a policy: on held-out preferences, and by a verifier on what it writes."""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_data.scoring import models
from rlhf_data.scoring.encode import Message
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.training.batches import manifest_of, read_rows, read_split
from rlhf_data.training.gate import check_encoding
from rlhf_data.training.generate import generate
from rlhf_data.training.step import Policy, sequence_logps

Verifier = Callable[[list[Message], str], float]
_RESAMPLES = 2000


def preference_accuracy(
    model: dict[str, Any],
    snapshot: Path,
    split: str = "test",
    *,
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    token_budget: int | None = None,
    cache: Path,
) -> dict[str, Any]:
    """How often the policy ranks a held-out pair as its readers did; a tie counts one half.

    Args:
        model: reference of the policy.
        snapshot: a paired snapshot; where it has reference log-probs, implicit rewards are compared too.
        split: which part of it.
        template: see `encode`; as in training, and so are the lengths and dtype.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        device: see `models.load`.
        token_budget: most tokens of a forward.
        cache: folder for digests and dequantised models.

    Returns:
        {"overall", "by_category": {name: …}, "dropped"}; each part has n, and as {"value", "low", "high"} with a 95 %
        Wilson interval `likelier` (share of pairs where log π(chosen) > log π(rejected)) and `reward` (share where the
        log-ratio margin is > 0; None without references).

    Raises:
        ValueError: not a paired snapshot, no such split, or references of other tokens.
    """
    table = read_split(snapshot, split)
    encoding = {"template": template, "max_length": max_length, "max_prompt_length": max_prompt_length}
    scored = all(name in table.column_names and not table[name].null_count for name in _REFERENCES)
    if scored:
        limits = {"template": template, "max_length": max_length}
        check_encoding(manifest_of(snapshot).get("score"), limits)
    net, tokenizer = models.load(model, dtype=dtype, device=device, cache=cache)
    rows = read_rows(table, "dpo" if scored else _UNREFERENCED, tokenizer, **encoding)
    policy = Policy(net, layout_of(net), token_budget or default_budget(net))
    logps = sequence_logps(policy, rows.groups).cpu().numpy()
    margins = {"likelier": logps[:, 0] - logps[:, 1]}
    if scored:
        stored = np.asarray(rows.columns["ref_chosen_logps"]) - np.asarray(rows.columns["ref_rejected_logps"])
        margins["reward"] = margins["likelier"] - stored
    categories = rows.columns["category"]
    names = sorted({name for name in categories if name is not None})
    return {
        "overall": _shares(margins, np.ones(len(rows), dtype=bool)),
        "by_category": {name: _shares(margins, np.asarray([c == name for c in categories])) for name in names},
        "dropped": rows.dropped,
    }
