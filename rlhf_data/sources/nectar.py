"""Nectar (Zhu et al. 2023, berkeley-nest/Nectar): seven answers a prompt, ranked by GPT-4.

Columns as on its data card; Apache-2.0, "under the condition that the dataset is not used to compete with OpenAI".
"""

import polars as pl

from rlhf_data.sources.hh_rlhf import FIRST_TURN, turns
from rlhf_data.sources.observations import Read, reasons

_ANSWER = pl.Struct({"answer": pl.String(), "model": pl.String(), "rank": pl.Float64()})
TABLES = {"raw": {"prompt": pl.String(), "answers": pl.List(_ANSWER)}}
_OPEN = r"\s*\n\nAssistant:\s*$"


def read(raw: pl.DataFrame) -> Read:
    r"""One rank for each answer.

    Args:
        raw: record; prompt (String): turns that begin with "\n\nHuman:" and "\n\nAssistant:", the last one open;
            answers: a list of answer, model, rank (1 is best).

    Returns:
        rows: ranks, in the order of `raw`, then of the list; a null rank is a missing one;
        rejects: `dialogue.malformed` (the prompt does not begin with "Human:" or not end with an open "Assistant:"),
        `answers.empty`.
    """
    prompt = pl.col("prompt")
    whole = ~prompt.str.contains("\x1e", literal=True)
    formed = (prompt.str.starts_with(FIRST_TURN) & prompt.str.contains(_OPEN) & whole).fill_null(False)
    some = pl.col("answers").list.len().fill_null(0) > 0
    rows = (
        raw.filter(formed, some)
        .with_columns(prompt=turns(prompt.str.replace(_OPEN, "")))
        .explode("answers", empty_as_null=True, keep_nulls=True)
        .unnest("answers")
        .select("record", "prompt", "model", completion="answer", kind=pl.lit("rank"), value="rank")
    )
    malformed = reasons(raw.filter(~formed), "dialogue.malformed", 'needs "Human:" first, an open "Assistant:" last')
    return Read(rows, rejects=pl.concat([malformed, reasons(raw.filter(formed, ~some), "answers.empty")]))
