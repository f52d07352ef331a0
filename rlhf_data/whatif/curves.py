"""A rule's weights as a curve over the log-ratio, and whether it lets go softly or all at once."""

from typing import Any

import numpy as np

from rlhf_data import rules
from rlhf_data.whatif.array import Array
from rlhf_data.whatif.ask import Asked, reads

TOKENS, NATS = 50, 100.0  # each completion: so many tokens, and so many nats below 0 under the reference
REACH = 15.0
POINTS = 301
JUMP = 0.02  # a step of more than this part of the range, however short the way, is a clip


def curve(one: Asked) -> dict[str, Any] | None:
    """The weights as the policy moves away from its reference; None where the rule reads more than is given here.

    Paired: x is log_ratio_margin, half of it gained by the chosen and half lost by the rejected completion; the lines
    are w₊ and w₋. Unpaired: x is log_ratio; the lines are w of a good completion (label true, reward 1) and of a bad
    one (label false, reward −1). Completions are of 50 tokens and −100 nats under the reference, margin is 1,
    preference 1. The batch of a rule that averages is its one row, or the good and the bad one.

    Returns:
        x, lines (name → values), and `clips`: where a line jumps, each x.
    """
    x = np.linspace(-REACH, REACH, POINTS)
    given = _pairs(x[:, None]) if rules.table(one.rule) == "paired" else _completions(x[:, None])
    if not reads(one.rule) <= given.keys():
        return None
    lines = lines_at(one, x)
    clips = sorted({clip for name in lines for clip in _clips(one, name, x, lines[name])})
    return {"x": x.tolist(), "lines": {name: y.tolist() for name, y in lines.items()}, "clips": clips}


def lines_at(one: Asked, x: np.ndarray) -> dict[str, np.ndarray]:
    """The lines of a rule at `x` (k,), each (k,); every x is a batch of its own."""
    rule = rules.rule(one.rule, **one.parameters)
    with np.errstate(all="ignore"):
        if rules.table(one.rule) == "paired":
            made = rule(rules.Pairs(**_pairs(x[:, None])))
            return {
                name: np.broadcast_to(side.values, (len(x), 1))[:, 0] + 0.0
                for name, side in zip(("w₊", "w₋"), made, strict=True)
            }
        made = rule(rules.Completions(**_completions(x[:, None])))
        values = np.broadcast_to(made.values, (len(x), 2)) + 0.0
    if not {"label", "reward"} & reads(one.rule):
        return {"w": values[:, 0]}
    return {"w, good": values[:, 0], "w, bad": values[:, 1]}


def _pairs(x: np.ndarray) -> dict[str, Any]:
    ones = np.ones_like(x)
    reference, tokens = Array(-NATS * ones), Array(TOKENS * ones)
    return {
        "policy_chosen_logps": Array(x / 2 - NATS), "policy_rejected_logps": Array(-x / 2 - NATS),
        "weight": Array(ones),
        "ref_chosen_logps": reference, "ref_rejected_logps": reference, "preference": Array(ones),
        "margin": Array(ones), "chosen_n_tokens": tokens, "rejected_n_tokens": tokens,
    }  # fmt: skip


def _completions(x: np.ndarray) -> dict[str, Any]:
    ones = np.ones((len(x), 2))
    good = np.array([[True, False]]) & (ones > 0)
    reference = Array(-NATS * ones)
    return {
        "policy_logps": Array(x * ones - NATS), "weight": Array(ones), "n_tokens": Array(TOKENS * ones),
        "label": Array(good), "reward": Array(np.where(good, 1.0, -1.0)), "ref_logps": reference,
        "policy_mismatched_logps": reference, "ref_mismatched_logps": reference,
    }  # fmt: skip


def _clips(one: Asked, name: str, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Where a line jumps: steps that stay as high however closely one looks."""
    high = float(np.ptp(y))
    if not np.isfinite(high) or high == 0:
        return []
    found = []
    steps = np.abs(np.diff(y))
    beside = np.maximum(np.append(steps[1:], 0), np.append(0, steps[:-1]))
    for i in np.flatnonzero(steps > 1.5 * beside):  # a smooth line's steps are about as high as their neighbours
        low, top = float(x[i]), float(x[i + 1])
        near = y[max(0, i - 8) : i + 10]  # on the scale of what lies near: a line may be steep elsewhere
        if steps[i] < 1e-6 * np.abs(near).max():  # rounding
            continue
        for _ in range(40):
            middle = (low + top) / 2
            left, mid, right = lines_at(one, np.array([low, middle, top]))[name]
            low, top = (low, middle) if abs(mid - left) > abs(right - mid) else (middle, top)
            if abs(right - left) < JUMP * np.ptp(near):
                break
        else:
            found.append(round((low + top) / 2, 4) + 0.0)
    return found
