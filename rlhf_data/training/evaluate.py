"""Judging a policy: on held-out preferences, and by a verifier on what it writes."""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlhf_data.scoring import models
from rlhf_data.scoring.encode import Message, prompt_limit
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.training.batches import manifest_of, read_rows, read_split
from rlhf_data.training.gate import check_encoding
from rlhf_data.training.generate import generate
from rlhf_data.training.step import Policy, sequence_logps

Verifier = Callable[[list[Message], str], float]
_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")
_RESAMPLES = 2000
_Z95 = 1.959964


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
    limit = prompt_limit(max_length, max_prompt_length)
    encoding = {"template": template, "max_length": max_length, "max_prompt_length": limit}
    scored = all(name in table.column_names and not table[name].null_count for name in _REFERENCES)
    if scored:
        check_encoding(manifest_of(snapshot).get("score"), encoding)
    net, tokenizer = models.load(model, dtype=dtype, device=device, cache=cache)
    filled = _REFERENCES if scored else ()
    rows = read_rows(table, tokenizer, kind="paired", filled=filled, soft=True, purpose="evaluation", **encoding)
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


def verified_reward(
    model: dict[str, Any],
    prompts: Sequence[list[Message]],
    verifier: str | Verifier,
    *,
    categories: Sequence[str | None] | None = None,
    baseline: Sequence[float] | None = None,
    template: str = "chat",
    n: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 768,
    batch_size: int = 16,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """What a verifier thinks of what the policy writes.

    Args:
        model: reference of the policy.
        prompts: messages, one list a prompt.
        verifier: a function (messages, completion) → reward, or its name "module:function".
        categories: of the prompts, for a part each.
        baseline: another policy's `rewards` for the same prompts, to compare with prompt by prompt.
        template: see `generate`, and so are the following.
        n: completions a prompt; their mean reward counts.
        temperature: 0 takes the likeliest token.
        max_new_tokens: most tokens of a completion.
        max_prompt_length: most tokens of a prompt.
        batch_size: sequences of a batch.
        seed: of sampling and resampling.
        dtype: see `models.load`.
        device: see `models.load`.
        cache: folder for digests and dequantised models.
        progress: whether a bar on stderr counts batches.

    Returns:
        {"overall", "by_category": {name: …}, "rewards", "completions"}; each part has n (prompts) and `reward`, and
        with a baseline `difference`, as {"value", "low", "high"}: means with 95 % intervals over resampled prompts.

    Raises:
        ValueError: no such verifier, a reward that is no number, or lists of unequal lengths.
    """
    for name, given in (("categories", categories), ("baseline", baseline)):
        if given is not None and len(given) != len(prompts):
            raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts")
    rate = find_verifier(verifier) if isinstance(verifier, str) else verifier
    net, tokenizer = models.load(model, dtype=dtype, device=device, cache=cache)
    completions = generate(
        net,
        tokenizer,
        prompts,
        template=template,
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        max_prompt_length=max_prompt_length,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    rewards = np.asarray([_rated(rate, prompt, texts) for prompt, texts in zip(prompts, completions, strict=True)])
    values = {"reward": rewards}
    if baseline is not None:
        values["difference"] = rewards - np.asarray(baseline, dtype=float)
    names = sorted({name for name in categories or () if name is not None})
    return {
        "overall": _means(values, np.ones(len(prompts), dtype=bool), seed),
        "by_category": {
            name: _means(values, np.asarray([c == name for c in categories or ()]), seed) for name in names
        },
        "rewards": rewards.tolist(),
        "completions": completions,
    }


def find_verifier(name: str) -> Verifier:
    """The function that "module:function" names.

    Raises:
        ValueError: no such module or function.

    >>> find_verifier("math:fsum").__name__
    'fsum'
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no verifier {name}: name an importable function as module:function ({error})") from error
    if not callable(found):
        raise ValueError(f"the verifier {name} is no function")
    return cast("Verifier", found)


def wilson(hits: float, n: int) -> dict[str, float]:
    """A share with its 95 % interval after Wilson (1927), which stays inside [0, 1].

    >>> {name: round(value, 3) for name, value in wilson(8, 10).items()}
    {'value': 0.8, 'low': 0.49, 'high': 0.943}
    """
    share = hits / n
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    return {"value": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def bootstrap(values: np.ndarray, seed: int) -> dict[str, float]:
    """A mean with its 95 % percentile interval over 2,000 resamples; no wider than a point where n is 1."""
    rng = np.random.default_rng(seed)
    means = [float(values[rng.integers(0, len(values), len(values))].mean()) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _shares(margins: dict[str, np.ndarray], member: np.ndarray) -> dict[str, Any]:
    shares: dict[str, Any] = {"n": int(member.sum()), "reward": None}
    for name, margin in margins.items():
        inside = margin[member]
        shares[name] = wilson(float((inside > 0).sum() + (inside == 0).sum() / 2), len(inside))
    return shares


def _means(values: dict[str, np.ndarray], member: np.ndarray, seed: int) -> dict[str, Any]:
    return {"n": int(member.sum())} | {name: bootstrap(value[member], seed) for name, value in values.items()}


def _rated(rate: Verifier, prompt: list[Message], texts: Sequence[str]) -> float:
    rewards = [float(rate(prompt, text)) for text in texts]
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"the verifier gave {rewards} for the prompt {str(prompt)[:200]}: a reward must be finite")
    return sum(rewards) / len(rewards)
