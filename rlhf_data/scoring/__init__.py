"""Reference log-probs, computed once and looked up ever after."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_data.scoring.scorer import score

__all__ = ["MEASURES", "score"]

MEASURES = ("token_logps", "mean_log_p2")  # columns of a result that are there where they are asked for


def __getattr__(name: str) -> Any:
    # Loaded at first use: a plan needs `scoring.identity`, and no torch.
    if name != "score":
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    from rlhf_data.scoring.scorer import score

    return score
