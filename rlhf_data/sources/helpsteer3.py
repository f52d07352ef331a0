"""HelpSteer3's preferences (Wang et al. 2025, arXiv:2505.11475): pairs judged by up to three people each.

Columns and codes as on the data card of nvidia/HelpSteer3, configuration preference; CC-BY-4.0.
"""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.helpsteer2_preference import STRENGTHS
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose, compared

TABLES = {
    "raw": {
        "context": MESSAGES,
        **dict.fromkeys(("response1", "response2", "domain"), pl.String()),
        "overall_preference": pl.Int64(),
        "individual_preference": pl.List(pl.Struct({"score": pl.Int64()})),
    }
}


def read(raw: pl.DataFrame, *, judgment: str = "overall") -> Read:
    """The overall preference as one comparison a record, or one comparison for each annotator.

    Args:
        raw: record; context (messages); response1, response2, domain (String); overall_preference (Int64): -3 (response
            1 is much better) to 3 (response 2 is much better), 0 about the same; individual_preference: a list of
            scores.
        judgment: "overall" or "individual"; an annotator is known by the place in the list only.

    Returns:
        rows: comparisons of response1 with response2, in the order of `raw`; the domain is the category;
        rejects: `verdict.unknown` for another score;
        skipped: `preference.absent`: no individual preference.

    Raises:
        ValueError: no such judgment.
    """
    choose("judgment", judgment, ("overall", "individual"))
    rows = raw.select(
        "record",
        "overall_preference",
        "individual_preference",
        prompt="context",
        completion="response1",
        other="response2",
        category="domain",
    )
    shared = ["record", "prompt", "completion", "other", "category"]
    if judgment == "overall":
        return compared(rows.select(*shared, verdict="overall_preference"), STRENGTHS)
    none = pl.col("individual_preference").list.len().fill_null(0) == 0
    each = (
        rows.filter(~none)
        .explode("individual_preference", empty_as_null=True, keep_nulls=True)
        .select(
            *shared,
            verdict=pl.col("individual_preference").struct.field("score"),
            annotator=pl.int_range(1, pl.len() + 1).over("record").cast(pl.String),
        )
    )
    return compared(each, STRENGTHS)._replace(skipped=reasons(rows.filter(none), "preference.absent"))
