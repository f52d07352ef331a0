"""The sizes of gradients, measured on a few rows of each source: one backward pass a completion, for all rules."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from rlhf_data import ids
from rlhf_data.scoring import models
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.progress import bar
from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif.mass import ROOT_N, Size, Sizes, surprise
from rlhf_data.whatif.weigh import KEYS, SIDES

LARGEST_EXPONENT = 1.0  # gradients that all point one way


class Gradient(NamedTuple):
    """The gradient of a completion's summed log-prob: its norm, the tokens, their nats; `flat` is the gradient."""

    norm: float
    n_tokens: int
    logps: float
    flat: torch.Tensor


def probe(
    snapshot: Path,
    model: dict[str, Any] | None,
    *,
    split: str,
    each: int,
    seed: int = 0,
    cache: Path,
    device: str = "auto",
    progress: bool = True,
) -> Sizes:
    """What `mass.Sizes` says of each source, from backward passes over `each` rows of it.

    Args:
        snapshot: a scored one: texts become tokens as they did for its references.
        model: the policy; None takes the snapshot's reference.
        split: which rows.
        each: rows of each source, drawn by keyed hash.
        seed: of that hash.
        cache: folder for digests and dequantised models.
        device: see `models.load`.
        progress: whether a bar is shown.

    Raises:
        ValueError: a snapshot without references, or a model that does not load.
    """
    opened = Snapshot(snapshot)
    recipe = opened.manifest["score"]
    if recipe is None:
        raise ValueError(f"{opened.path} has no reference log-probs: add `score:` to the pipeline and build it again")
    table = opened.manifest["table"]
    rows = _drawn(opened, table, split, each, seed)
    policy, tokenizer = models.load(
        model or recipe["model"], dtype="float32", device=device, max_length=recipe["max_length"], cache=cache
    )
    lengths = {key: recipe[key] for key in ("template", "max_length", "max_prompt_length")}
    encoded = {
        side: encode(tokenizer, rows["prompt"].to_list(), rows[side].to_list(), **lengths) for side in SIDES[table]
    }
    found: dict[str, list[list[Gradient]]] = {}
    with bar("probe", "rows", total=rows.height, shown=progress) as shown:
        for i, source in enumerate(rows["source"].to_list()):
            shown.update()
            if any(side.refused[i] for side in encoded.values()):
                continue
            made = [gradient(policy, side.prompt_ids[i], side.completion_ids[i]) for side in encoded.values()]
            found.setdefault(source, []).append(made)
    return fit(found)


def gradient(model: Any, prompt: list[int], completion: list[int]) -> Gradient:
    """The gradient of log π(completion | prompt) by all parameters, on the CPU."""
    model.zero_grad(set_to_none=True)
    logps = token_logps(model, [Group(prompt, [completion])], "padded")[0][0].double().sum()
    logps.backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
    model.zero_grad(set_to_none=True)
    return Gradient(float(flat.double().norm()), len(completion), float(logps.detach()), flat)


def fit(found: dict[str, list[list[Gradient]]]) -> Sizes:
    """One exponent of n within sources, and a factor and a mean cosine of each source.

    Factors are ratios of sums, so a source's predicted norms have the measured ones' mean.
    """
    tokens, apart, norms = (
        {source: np.array([_part(g, what) for row in rows for g in row]) for source, rows in found.items()}
        for what in ("n_tokens", "surprise", "norm")
    )
    centred = [(_centred(np.log(tokens[s])), _centred(np.log(norms[s] / apart[s]))) for s in found]
    squares = sum(float(x @ x) for x, _ in centred)
    exponent = sum(float(x @ y) for x, y in centred) / squares if squares > 1e-9 else ROOT_N
    exponent = min(max(exponent, 0.0), LARGEST_EXPONENT)
    return Sizes(
        exponent,
        {
            source: Size(
                float(norms[source].sum() / (tokens[source] ** exponent * apart[source]).sum()), _cosine(found[source])
            )
            for source in found
        },
    )


def _part(one: Gradient, what: str) -> float:
    if what == "surprise":
        return float(surprise(np.array(one.logps), np.array(one.n_tokens)))
    return float(getattr(one, what))


def _cosine(rows: list[list[Gradient]]) -> float:
    """g₊·g₋ over |g₊||g₋|, both summed over pairs; 0 for single completions."""
    pairs = [row for row in rows if len(row) == 2]
    lengths = sum(a.norm * b.norm for a, b in pairs)
    return float(sum(float(a.flat.double() @ b.flat.double()) for a, b in pairs) / lengths) if lengths else 0.0


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def _drawn(opened: Snapshot, table: str, split: str, each: int, seed: int) -> pl.DataFrame:
    """`each` rows of every source, with their texts; rows of weight 0 are never trained on."""
    key = KEYS[table]
    narrow = opened.scan(split).filter(pl.col("weight") > 0).select(key, "source").collect()
    place = ids.keyed_hash(narrow[key], "probe", seed)
    picked = narrow.with_columns(_place=place).sort("_place", key).group_by("source", maintain_order=True).head(each)
    wanted = opened.scan(split).filter(pl.col(key).is_in(picked[key].to_list()))
    return wanted.select(key, "source", "prompt", *SIDES[table]).collect()
