"""Questions of Stack Exchange with scored answers (HuggingFaceH4/stack-exchange-preferences, after Askell et al. 2021).

Columns and the score's formula as on its data card; CC-BY-SA-4.0.
"""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

_ANSWER = pl.Struct({"text": pl.String(), "pm_score": pl.Int64()})
TABLES = {"raw": {"question": pl.String(), "answers": pl.List(_ANSWER)}}


def read(raw: pl.DataFrame) -> Read:
    """One rating for each answer.

    Args:
        raw: record; question (String, HTML); answers: text (String, HTML), pm_score (Int64): log2(1 + upvotes) rounded,
            plus 1 if the questioner accepted the answer, -1 if the votes are negative; larger is better.

    Returns:
        rows: ratings, in the order of `raw`, then of the list; a null score is a missing rating;
        rejects: `answers.empty`.
    """
    some = pl.col("answers").list.len().fill_null(0) > 0
    rows = (
        raw.filter(some)
        .explode("answers", empty_as_null=True, keep_nulls=True)
        .unnest("answers")
        .select("record", prompt="question", completion="text", kind=pl.lit("rating"), value="pm_score")
    )
    return Read(rows, rejects=reasons(raw.filter(~some), "answers.empty"))
