"""Chatbot Arena's conversations (Zheng et al. 2023, arXiv:2306.05685; lmsys/chatbot_arena_conversations).

Columns as on its data card; prompts CC-BY-4.0, answers CC-BY-NC-4.0.
"""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.observations import Read
from rlhf_data.sources.verdicts import choose, compared

_SIDES = ("conversation_a", "conversation_b")
TABLES = {
    "raw": {
        **dict.fromkeys(_SIDES, MESSAGES),
        **dict.fromkeys(("model_a", "model_b", "winner", "judge", "language"), pl.String()),
    }
}
BOTH_BAD = "tie (bothbad)"


def read(raw: pl.DataFrame, *, both_bad: str = "tie") -> Read:
    """One comparison for each battle of one turn.

    In a longer battle each model went on from its own answers, so the two last answers have no prompt in common.

    Args:
        raw: record; conversation_a, conversation_b (messages); model_a, model_b, judge, language (String); winner
            (String): model_a, model_b, tie, or tie (bothbad).
        both_bad: what "tie (bothbad)" is: a "tie", or no judgment that tells the answers apart, to "skip".

    Returns:
        rows: comparisons of a's answer with b's, in the order of `raw`; a is called first; the language is the
        category;
        rejects: `prompt.mismatch` (the two sides were asked different things), `dialogue.malformed` (no answer),
        `verdict.unknown` for another winner;
        skipped: `turns.several`, `verdict.both_bad`.

    Raises:
        ValueError: both_bad is neither tie nor skip.
    """
    choose("both_bad", both_bad, ("tie", "skip"))
    asked = {side: pl.col(side).list.get(0, null_on_oob=True) for side in _SIDES}
    answer = {side: pl.col(side).list.get(1, null_on_oob=True) for side in _SIDES}
    longer = pl.any_horizontal(pl.col(side).list.len() > 2 for side in _SIDES).fill_null(False)
    formed = pl.all_horizontal(
        *((turn.struct.field("role") == "user") for turn in asked.values()),
        *((turn.struct.field("role") == "assistant") for turn in answer.values()),
    ).fill_null(False)
    same = (asked[_SIDES[0]].struct.field("content") == asked[_SIDES[1]].struct.field("content")).fill_null(False)
    bad = (pl.col("winner") == BOTH_BAD).fill_null(False) & pl.lit(both_bad == "skip")
    code = (
        pl.when(longer).then(pl.lit("turns.several"))
        .when(~formed).then(pl.lit("dialogue.malformed"))
        .when(~same).then(pl.lit("prompt.mismatch"))
        .when(bad).then(pl.lit("verdict.both_bad"))
    )  # fmt: skip
    coded = raw.with_columns(code=code)
    rows = coded.filter(pl.col("code").is_null()).select(
        "record",
        prompt=asked[_SIDES[0]].struct.field("content"),
        completion=answer[_SIDES[0]].struct.field("content"),
        other=answer[_SIDES[1]].struct.field("content"),
        verdict="winner",
        annotator="judge",
        position=pl.lit("first"),
        model="model_a",
        other_model="model_b",
        category="language",
    )
    found = compared(rows, {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, BOTH_BAD: 0.5})
    out = pl.col("code").is_in(["turns.several", "verdict.both_bad"])
    left = coded.filter(pl.col("code").is_not_null())
    refused = left.filter(~out).select("record", "code", detail=pl.lit(None, dtype=pl.String))
    skipped = left.filter(out).select("record", "code", detail=pl.lit(None, dtype=pl.String))
    return Read(found.rows, pl.concat([refused, found.rejects]), skipped)
