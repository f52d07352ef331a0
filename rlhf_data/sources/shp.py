"""Stanford Human Preferences (Ethayarajh et al. 2022, arXiv:2110.08420): two comments on a post, by their votes.

Columns as on the data card of stanfordnlp/SHP (SHP-2 has them too).
"""

import polars as pl

from rlhf_data.sources.observations import Read
from rlhf_data.sources.verdicts import compared

TABLES = {
    "raw": {
        **dict.fromkeys(("history", "human_ref_A", "human_ref_B", "domain"), pl.String()),
        "labels": pl.Int64(),
    }
}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record. There are no ties: a later comment with more votes was preferred.

    Args:
        raw: record; history (String): the post; human_ref_A, human_ref_B (String): two comments; domain (String), such
            as askculinary_train; labels (Int64): 1 = A is better, 0 = B is better.

    Returns:
        rows: comparisons of A with B, in the order of `raw`; the domain without its split is the category;
        rejects: `verdict.unknown` for another label.
    """
    rows = raw.select(
        "record",
        prompt="history",
        completion="human_ref_A",
        other="human_ref_B",
        verdict="labels",
        category=pl.col("domain").str.replace(r"_(train|validation|test)$", ""),
    )
    return compared(rows, {1: 1.0, 0: 0.0})
