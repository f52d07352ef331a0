"""PKU-SafeRLHF (Ji et al. 2024, arXiv:2406.15513): which of two answers is better, which is safer, which are safe.

Columns as on the data card of PKU-Alignment/PKU-SafeRLHF; CC-BY-NC-4.0.
"""

import polars as pl

from rlhf_data.sources.observations import Read
from rlhf_data.sources.verdicts import choose, compared

_TEXTS = ("prompt", "response_0", "response_1")
TABLES = {
    "raw": {
        **dict.fromkeys(_TEXTS, pl.String()),
        **dict.fromkeys(("better_response_id", "safer_response_id"), pl.Int64()),
        **dict.fromkeys(("is_response_0_safe", "is_response_1_safe"), pl.Boolean()),
    }
}


def read(raw: pl.DataFrame, *, judgment: str) -> Read:
    """One comparison a record, or two labels. Better and safer often disagree, so one has to be chosen.

    Args:
        raw: record; prompt, response_0, response_1 (String); better_response_id, safer_response_id (Int64): 0 or 1;
            is_response_0_safe, is_response_1_safe (Boolean).
        judgment: "better" (more helpful), "safer" (less harmful), or "safe": a label for each answer.

    Returns:
        rows: comparisons of response_0 with response_1, or labels (1 = safe), in the order of `raw`; the aspect is the
        judgment;
        rejects: `verdict.unknown` for an id that is neither 0 nor 1.

    Raises:
        ValueError: no such judgment.
    """
    choose("judgment", judgment, ("better", "safer", "safe"))
    aspect = pl.lit(judgment).alias("aspect")
    if judgment != "safe":
        verdict = pl.col(f"{judgment}_response_id").alias("verdict")
        rows = raw.select("record", "prompt", aspect, verdict, completion="response_0", other="response_1")
        return compared(rows, {0: 1.0, 1: 0.0})
    labels = [
        raw.select(
            "record",
            "prompt",
            aspect,
            completion=f"response_{i}",
            kind=pl.lit("label"),
            value=pl.col(f"is_response_{i}_safe").cast(pl.Float64),
        )
        for i in (0, 1)
    ]
    return Read(pl.concat(labels).sort("record", maintain_order=True))
