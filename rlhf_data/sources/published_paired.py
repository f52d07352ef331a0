"""A paired snapshot of ours as raw data: its rows come back as comparisons, or as the ratings they were made from."""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose

TABLES = {
    "raw": {
        "prompt": MESSAGES,
        **dict.fromkeys(("chosen", "rejected", "category"), pl.String()),
        **dict.fromkeys(("preference", "chosen_reward", "rejected_reward"), pl.Float64()),
    }
}


def read(raw: pl.DataFrame, *, judgment: str = "comparison") -> Read:
    """One comparison a row, with its preference, or the two rewards.

    Args:
        raw: record; prompt (messages); chosen, rejected, category (String); preference (Float64): probability that
            chosen is the better one; chosen_reward, rejected_reward (Float64), null where answers were compared.
        judgment: "comparison", or "rating": the rewards of both answers.

    Returns:
        rows: in the order of `raw`;
        skipped: `reward.missing` (of ratings: a pair that was made from a comparison has none).

    Raises:
        ValueError: no such judgment.
    """
    choose("judgment", judgment, ("comparison", "rating"))
    shared = ("record", "prompt", "category")
    if judgment == "comparison":
        kind = pl.lit("comparison")
        return Read(raw.select(*shared, completion="chosen", other="rejected", kind=kind, value="preference"))
    rewarded = pl.col("chosen_reward").is_not_null() & pl.col("rejected_reward").is_not_null()
    sides = [
        raw.filter(rewarded).select(*shared, completion=side, kind=pl.lit("rating"), value=f"{side}_reward")
        for side in ("chosen", "rejected")
    ]
    rows = pl.concat(sides).sort("record", maintain_order=True)
    return Read(rows, skipped=reasons(raw.filter(~rewarded), "reward.missing"))
