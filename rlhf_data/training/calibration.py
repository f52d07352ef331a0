"""Whether a reward model's certainty is the share of pairs that it ranks right."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10  # of the probability that the model gives its own choice, from a half to one
_RESAMPLES = 2000


def log_loss(margin: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """−p log σ(Δ) − (1 − p) log σ(−Δ) of each pair, nats, (n,); ln 2 where the scores are equal.

    Args:
        margin: Δ, chosen's score minus rejected's, (n,).
        preference: p, the share of raters who chose the chosen one, (n,).
    """
    return preference * np.logaddexp(0, -margin) + (1 - preference) * np.logaddexp(0, margin)


def reliability(margin: np.ndarray, preference: np.ndarray) -> list[dict[str, Any]]:
    """Pairs by how sure the model is of the answer that it scores higher, empty bins left out.

    Args:
        margin: chosen's score minus rejected's, (n,).
        preference: the share of raters who chose the chosen one, (n,).

    Returns:
        one {"low", "high", "n", "confidence", "accuracy"} a bin: the mean probability σ(|Δ|) that the model gives its
        choice, and the mean share of raters who made the same one.

    >>> reliability(np.array([0.0, 9.0]), np.array([1.0, 1.0]))[0]
    {'low': 0.5, 'high': 0.55, 'n': 1, 'confidence': 0.5, 'accuracy': 0.5}
    """
    at, confidence, outcome = _judged(margin, preference)
    edges = np.round(np.linspace(0.5, 1, BINS + 1), 6).tolist()
    return [
        {
            "low": edges[k],
            "high": edges[k + 1],
            "n": int(here.sum()),
            "confidence": float(confidence[here].mean()),
            "accuracy": float(outcome[here].mean()),
        }
        for k in range(BINS)
        if (here := at == k).any()
    ]


def calibration_error(
    margin: np.ndarray, preference: np.ndarray, prompts: Sequence[str], seed: int
) -> dict[str, float]:
    """The expected calibration error: Σ over bins of their share of pairs times |confidence − accuracy|.

    With it the 95 % percentile interval over resamples of the prompts, which lies above the truth for few pairs: noise
    within a bin counts as error.

    Args:
        margin: chosen's score minus rejected's, (n,).
        preference: the share of raters who chose the chosen one, (n,).
        prompts: of each pair; pairs of one prompt move together.
        seed: of the resampling.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5.
    """
    at, confidence, outcome = _judged(margin, preference)
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    n = int(cluster.max()) + 1
    gaps = np.zeros((n, BINS))
    np.add.at(gaps, (cluster, at), confidence - outcome)
    counts = np.bincount(cluster, minlength=n)
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_RESAMPLES))
    errors = [float(np.abs(times @ gaps).sum() / (times @ counts)) for times in draws]
    low, high = np.quantile(errors, [0.025, 0.975])
    return {"value": float(np.abs(gaps.sum(0)).sum() / len(margin)), "low": float(low), "high": float(high)}


def _judged(margin: np.ndarray, preference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair: its bin, the probability of the model's own choice, and the share of raters who agree with it."""
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    outcome = np.where(margin > 0, preference, np.where(margin < 0, 1 - preference, 0.5))
    return np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1), confidence, outcome
