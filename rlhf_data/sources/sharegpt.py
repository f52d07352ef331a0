"""Conversations in ShareGPT's form: demonstrations for supervised training, not judgments."""

import polars as pl

from rlhf_data.sources.dialogues import demonstrations
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose

_TURN = pl.Struct({"from": pl.String(), "value": pl.String()})
TABLES = {"raw": {"conversations": pl.List(_TURN)}}
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def read(raw: pl.DataFrame, *, replies: str = "last") -> Read:
    """The assistant's replies of each conversation.

    Args:
        raw: record; conversations: a list of from (human, gpt, system; also user, assistant) and value.
        replies: "last", or "every" reply, each under the turns before it.

    Returns:
        rows: demonstrations, in the order of `raw`, then of the turns; what follows the last reply is left out;
        rejects: `role.unknown`: someone else speaks;
        skipped: `reply.missing`: nothing that the assistant said to somebody.

    Raises:
        ValueError: replies is neither last nor every.
    """
    choose("replies", replies, ("last", "every"))
    speaker, text = pl.element().struct.field("from"), pl.element().struct.field("value")
    strange = pl.col("conversations").list.eval(speaker.filter(~speaker.is_in(list(_ROLES)))).list
    role = speaker.replace_strict(_ROLES, default=None, return_dtype=pl.String)
    known = raw.filter((strange.len() == 0).fill_null(True))
    spoken = known.select("record", messages=pl.col("conversations").list.eval(pl.struct(role=role, content=text)))
    rows = demonstrations(spoken, every=replies == "every")
    silent = known.join(rows, on="record", how="anti", maintain_order="left")
    return Read(
        rows.with_columns(kind=pl.lit("demonstration"), value=pl.lit(None, dtype=pl.Float64)),
        rejects=reasons(raw.filter(strange.len() > 0), "role.unknown", strange.join(", ")),
        skipped=reasons(silent, "reply.missing"),
    )
