"""WebGPT's comparisons (Nakano et al. 2021, arXiv:2112.09332; openai/webgpt_comparisons).

Columns and the meaning of the scores as on its data card.
"""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

TABLES = {
    "raw": {
        "question": pl.Struct({"dataset": pl.String(), "full_text": pl.String()}),
        **dict.fromkeys(("answer_0", "answer_1"), pl.String()),
        **dict.fromkeys(("score_0", "score_1"), pl.Float64()),
    }
}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record: the sign of the score says which answer is better, 0 is a tie.

    The card's authors take the sign too, and 0 for one half. The quotes that an answer rests on are its own and are
    left out, or no two answers would share a prompt.

    Args:
        raw: record; question: dataset, full_text (String); answer_0, answer_1 (String); score_0, score_1 (Float64): how
            strongly an answer is preferred, -1 to 1; they sum to 0.

    Returns:
        rows: comparisons of answer_0 with answer_1, in the order of `raw`; the question's data set is the category; a
        null score is a missing verdict;
        rejects: `score.malformed`: outside -1 to 1, or the two do not sum to 0.
    """
    first, second = pl.col("score_0"), pl.col("score_1")
    missing = first.is_null() | second.is_null()
    formed = missing | (first.is_between(-1, 1) & ((first + second).abs() < 1e-6))
    rows = raw.filter(formed).select(
        "record",
        prompt=pl.col("question").struct.field("full_text"),
        completion="answer_0",
        other="answer_1",
        kind=pl.lit("comparison"),
        value=pl.when(~missing).then(0.5 + 0.5 * first.sign()),
        category=pl.col("question").struct.field("dataset"),
    )
    return Read(rows, rejects=reasons(raw.filter(~formed), "score.malformed", pl.format("{} and {}", first, second)))
