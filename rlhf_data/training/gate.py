"""What must hold before the first step: the stored references are of the tokens that will be trained on."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.identity import template_hash
from rlhf_data.scoring.models import load_tokenizer
from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.store import TOLERANCE
from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Policy, sequence_logps

_COMPARED = 16  # rows whose tokens are compared: a template that differs does so in all
_REFERENCES = (
    ("ref_chosen_logps", 0),
    ("ref_rejected_logps", 1),
    ("ref_logps", 0),
    ("ref_chosen_token_logps", 0),
    ("ref_rejected_token_logps", 1),
    ("ref_token_logps", 0),
)


def check_encoding(recipe: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """ValueError where references were scored under another template or other lengths than we train with."""
    differing = [
        f"{name}: scored with {recipe[name]}, training with {value}"
        for name, value in ours.items()
        if recipe and name in recipe and recipe[name] != value
    ]
    if differing:
        raise ValueError("the reference log-probs are of other tokens than these: " + "; ".join(differing))


def first_rows(snapshot: Path, split: str) -> pa.Table:
    """Some rows of a split, with their texts, for `check_tokens`; none where it has none."""
    for path in sorted((snapshot / "data").glob(f"{split}-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(_COMPARED):
            return pa.Table.from_batches([batch])
    return pa.table({"prompt": [], "completion": []})


def check_tokens(
    rows: pa.Table, recipe: dict[str, Any] | None, model: dict[str, Any], encoding: dict[str, Any], cache: Path
) -> None:
    """ValueError where the reference read other tokens than the model will: as told by a few rows of both.

    Nothing is compared where template and tokenizer are the same files, or the reference's tokenizer is not there.

    Args:
        rows: of the split, with their texts.
        recipe: how the references were scored, if the snapshot says so.
        model: reference of what will read the rows.
        encoding: template and lengths, see `encode`.
        cache: folder for digests.
    """
    if recipe is None or recipe.get("template_hash") in (None, template_hash(model, encoding["template"], cache)):
        return
    try:
        theirs = load_tokenizer(recipe["model"], cache=cache)
    except (KeyError, ValueError):
        return
    few = rows.slice(0, _COMPARED).to_pydict()
    asked = few["prompt"], few["chosen"] if "chosen" in few else few["completion"]
    read = [encode(one, *asked, **encoding) for one in (theirs, load_tokenizer(model, cache=cache))]
    same = [
        a == b for a, b in zip(*(zip(one.prompt_ids, one.completion_ids, strict=True) for one in read), strict=True)
    ]
    if not all(same):
        raise ValueError(
            f"{recipe['model']['path']}, which scored the references, reads {same.count(False)} of {len(same)} rows as "
            f"other tokens than {model['path']} does: their tokenizers or chat templates differ; give both one "
            "`template`, a .jinja file, or score with the policy's tokenizer"
        )


def check_first_batch(
    policy: Policy, rows: Rows, picked: Sequence[int], recipe: dict[str, Any] | None, ours: dict[str, Any]
) -> float | None:
    """Where policy = reference, live log-probs must be the stored ones.

    Args:
        policy: as it is before the first step.
        rows: what will be trained on.
        picked: the rows of the first step.
        recipe: how the references were scored, if the snapshot says so.
        ours: the run's model_hash and dtype, and the template_hash.

    Returns:
        The largest difference in nats a token; None where there is nothing to compare.

    Raises:
        ValueError: they differ by more than the dtypes explain; names the likely cause.
    """
    stored = [(name, column) for name, column in _REFERENCES if name in rows.columns]
    if not stored or recipe is None or recipe.get("model_hash") != ours["model_hash"]:
        return None
    dtype = ours["dtype"]
    scored_in = recipe.get("dtype", dtype)
    tolerance = max(TOLERANCE[dtype], TOLERANCE.get(scored_in, 0))
    live = sequence_logps(policy, [rows.groups[i] for i in picked]).tolist()
    gaps = []
    for name, column in stored:
        for row, i in enumerate(picked):
            n_tokens = len(rows.groups[i].completions[column])
            reference = rows.columns[name][i]
            total = float(sum(map(float, reference)) if "token_" in name else reference)
            # NaN is no number that a difference could be told from: it counts as the largest.
            gap = abs(live[row][column] - total) / n_tokens
            where = f"{rows.ids[i]}: {name} is {total:.4f}, now {live[row][column]:.4f}"
            gaps.append(_Gap(gap if gap == gap else math.inf, where, rows.groups[i], column))
    worst = max(gaps, key=lambda gap: gap.nats)
    if worst.nats > tolerance:
        cause = likely_cause(gaps, tolerance, recipe, ours)
        raise ValueError(
            f"the policy starts as the reference, yet log-probs differ by {worst.nats:.4g} nats a token "
            f"({worst.where}; {tolerance:g} is allowed for {dtype}): {cause}; score the snapshot again"
        )
    return worst.nats


class _Gap(NamedTuple):
    """How far a stored log-prob is from the live one, in nats a token, and whose it is."""

    nats: float
    where: str
    group: Group
    column: int


def likely_cause(gaps: Sequence[_Gap], tolerance: float, recipe: dict[str, Any], ours: dict[str, Any]) -> str:
    """Model, template, dtype or truncation: what most likely made stored and live log-probs part.

    Gaps of sequences that fill the length they were cut to, while shorter ones agree, are of truncation; small gaps
    everywhere, between two dtypes, of the dtype; a few rows among many that agree were changed after scoring. Where all
    are apart, the digest of template and tokenizer tells whether the tokens are the same; if so, it is the model.
    """
    wrong = [gap for gap in gaps if gap.nats > tolerance]
    length = recipe.get("max_length")
    full = [gap for gap in gaps if length and _length(gap) >= length]
    if full and len(full) < len(gaps) and all(gap in full for gap in wrong):
        return (
            f"the likely cause is truncation, as only sequences of {length} tokens differ: they were cut elsewhere "
            "when they were scored (max_length, max_prompt_length)"
        )
    before, now = recipe.get("dtype"), ours["dtype"]
    if before not in (None, now) and median(gap.nats for gap in gaps) < 4 * tolerance:
        return f"the likely cause is the dtype, as all differ by a little: scored in {before}, training in {now}"
    if len(wrong) * 2 < len(gaps):
        return (
            f"{len(gaps) - len(wrong)} of {len(gaps)} agree, so model, template and dtype are the same: the likely "
            "cause is that rows or their stored log-probs were changed after scoring, or cut elsewhere (truncation)"
        )
    if recipe.get("template_hash") not in (None, ours.get("template_hash")):
        return "the likely cause is the template, as it, or the tokenizer, is not what it was when they were scored"
    same = "" if recipe.get("template_hash") is None else ", as template and tokenizer are the same"
    return (
        f"the likely cause is the model{same} and all differ: its weights are not those that scored, or its code "
        "computes something else than it did"
    )


def _length(gap: _Gap) -> int:
    return len(gap.group.prompt) + len(gap.group.completions[gap.column])
