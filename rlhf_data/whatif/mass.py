"""How much of a step's gradient each row brings, predicted from its weights, token counts and log-probs alone.

A row's gradient is w₊ g₊ − w₋ g₋, where g is the gradient of a completion's summed log-prob. That of one token's
log-prob passes through its logits as 1 − p, and those of a completion's tokens point mostly apart, so

    |g| ≈ s · n^α · (1 − p̄),  p̄ = e^(logp/n),  α = ½, s = 1
    |w₊ g₊ − w₋ g₋|² ≈ (w₊|g₊|)² + (w₋|g₋|)² − 2 ρ w₊ w₋ |g₊||g₋|,  ρ = 0

s and ρ of each source, and α, may be measured on some rows of each (`probe`), once for all rules: no rule is in them.
Shares need no more than |g| up to a factor.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from rlhf_data.whatif.weigh import SIDES

ROOT_N = 0.5


class Size(NamedTuple):
    """What is known of the gradients of one source: |g| = scale · n^α · (1 − p̄), and the cosine of a pair's two."""

    scale: float
    cosine: float


class Sizes(NamedTuple):
    """The sizes of gradients: an exponent for all, and `by_source`; a source that is not there is as `Size(1, 0)`."""

    exponent: float = ROOT_N
    by_source: Mapping[str, Size] = {}


def surprise(logps: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """1 − p̄ of completions of `n_tokens` tokens and `logps` nats, each (n,)."""
    return -np.expm1(logps / n_tokens)


def sizes(rows: pl.DataFrame, table: str, known: Sizes) -> list[np.ndarray] | None:
    """|g| of each side's completion, each (n,), up to one factor for all; None where tokens were not counted."""
    names = [("", "n_tokens")] if table == "unpaired" else [(f"{s}_", f"{s}_n_tokens") for s in SIDES[table]]
    if any(n not in rows.columns or rows[n].null_count() for _, n in names):
        return None
    scale = np.array([known.by_source.get(s, Size(1, 0)).scale for s in rows["source"].to_list()])
    found = []
    for side, n in names:
        logps = next((rows[c] for c in (f"policy_{side}logps", f"ref_{side}logps") if c in rows.columns), None)
        tokens = rows[n].to_numpy().astype(float)
        apart = np.ones(rows.height) if logps is None or logps.null_count() else surprise(logps.to_numpy(), tokens)
        found.append(scale * tokens**known.exponent * apart)
    return found


def mass(
    rows: pl.DataFrame, weights: list[np.ndarray], table: str, known: Sizes, measured: list[np.ndarray] | None
) -> np.ndarray:
    """The size of each row's gradient, row weight included, (n,); up to a factor.

    Args:
        rows: source, weight and what `sizes` reads.
        weights: (w₊, w₋) of pairs, (w,) of completions.
        table: "paired" or "unpaired".
        known: what is known of the sources.
        measured: of `sizes`; None takes all completions as equal.
    """
    lengths = measured or [np.ones(rows.height)] * len(weights)
    pushes = [w * g for w, g in zip(weights, lengths, strict=True)]
    if len(pushes) == 1:
        return rows["weight"].to_numpy() * np.abs(pushes[0])
    cosine = np.array([known.by_source.get(s, Size(1, 0)).cosine for s in rows["source"].to_list()])
    squared = pushes[0] ** 2 + pushes[1] ** 2 - 2 * cosine * pushes[0] * pushes[1]
    return rows["weight"].to_numpy() * np.sqrt(np.maximum(squared, 0))
