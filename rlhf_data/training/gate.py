"""What must hold before the first step: the stored references are of the tokens that will be trained on."""

from collections.abc import Sequence
from typing import Any

from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Policy, sequence_logps

# Nats a token that two passes of one model may differ by: packing changes the order of sums, bfloat16 more so.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
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


def check_first_batch(
    policy: Policy, rows: Rows, picked: Sequence[int], recipe: dict[str, Any] | None, model_hash: str, dtype: str
) -> float | None:
    """Where policy = reference, live log-probs must be the stored ones.

    Returns:
        The largest difference in nats a token; None where there is nothing to compare.

    Raises:
        ValueError: they differ by more than the dtypes explain.
    """
    stored = [(name, column) for name, column in _REFERENCES if name in rows.columns]
    if not stored or recipe is None or recipe.get("model_hash") != model_hash:
        return None
    tolerance = max(_TOLERANCE[dtype], _TOLERANCE.get(recipe.get("dtype", dtype), 0))
    live = sequence_logps(policy, [rows.groups[i] for i in picked]).tolist()
    worst, where = 0.0, ""
    for name, column in stored:
        for row, i in enumerate(picked):
            n_tokens = len(rows.groups[i].completions[column])
            reference = rows.columns[name][i]
            total = sum(reference) if "token_" in name else reference
            gap = abs(live[row][column] - total) / n_tokens
            if not gap <= worst:
                worst = gap
                where = f"{rows.ids[i]}: {name} is {total:.4f}, now {live[row][column]:.4f}"
    if not worst <= tolerance:
        raise ValueError(
            f"the policy starts as the reference, yet log-probs differ by {worst:.4g} nats a token ({where}; "
            f"{tolerance:g} is allowed for {dtype}): another template, tokenizer, max_length or dtype than "
            "when it was scored, or rows changed after scoring; score the snapshot again"
        )
    return worst
