"""Conversations in one text with "### Human:" and "### Assistant:" (timdettmers/openassistant-guanaco; Apache-2.0)."""

import polars as pl

from rlhf_data.sources.dialogues import demonstrations, turns
from rlhf_data.sources.observations import Read, reasons

TABLES = {"raw": {"text": pl.String()}}
_TAG = r"\s*### (Human|Assistant): ?"


def read(raw: pl.DataFrame) -> Read:
    """The last reply of each conversation, a demonstration.

    Args:
        raw: record; text (String): turns that begin with "### Human: " and "### Assistant: ".

    Returns:
        rows: demonstrations, in the order of `raw`; what follows the last reply is left out;
        rejects: `dialogue.malformed`: the text does not begin with a tag;
        skipped: `reply.missing`: nothing that the assistant said to somebody.
    """
    spoken = raw.select("record", messages=turns(pl.col("text"), _TAG, user="Human"))
    known = spoken.filter(pl.col("messages").is_not_null())
    rows = demonstrations(known, every=False)
    return Read(
        rows.with_columns(kind=pl.lit("demonstration"), value=pl.lit(None, dtype=pl.Float64)),
        rejects=reasons(spoken.filter(pl.col("messages").is_null()), "dialogue.malformed"),
        skipped=reasons(known.join(rows, on="record", how="anti", maintain_order="left"), "reply.missing"),
    )
