"""Conversations that stand in one text, with a tag before each turn."""

import polars as pl

_TURN = "\x1e"  # ASCII's record separator; a text that holds one itself cannot be taken apart
_SPEAKER = "\x1f"


def turns(text: pl.Expr, tag: str, *, user: str) -> pl.Expr:
    """The messages of a text; null where it does not begin with a tag, or holds the separators of this function.

    Args:
        text: String.
        tag: a regular expression of a tag with the speaker as its only group.
        user: the speaker who is the user; every other one is the assistant.
    """
    marked = text.str.replace_all(tag, f"{_TURN}${{1}}{_SPEAKER}")
    speaks = pl.element().str.starts_with(user + _SPEAKER)
    message = pl.struct(
        role=pl.when(speaks).then(pl.lit("user")).otherwise(pl.lit("assistant")),
        content=pl.element().str.replace(f"^[^{_SPEAKER}]*{_SPEAKER}", ""),
    )
    split = marked.str.strip_prefix(_TURN).str.split(_TURN).list.eval(message)
    return pl.when(marked.str.starts_with(_TURN) & ~text.str.contains(f"[{_TURN}{_SPEAKER}]")).then(split)


def demonstrations(records: pl.DataFrame, *, every: bool) -> pl.DataFrame:
    """The assistant's turns of conversations as completions, each under the turns before it.

    Args:
        records: record, messages (List(Struct{role, content})).
        every: every turn of the assistant, or the last one only.

    Returns:
        record, prompt, completion, in the order of the turns; a turn that nothing stands before is not taken.
    """
    placed = records.with_columns(place=pl.int_ranges(1, pl.col("messages").list.len(), dtype=pl.Int64))
    turn = pl.col("messages").list.get(pl.col("place"), null_on_oob=True)
    found = (
        placed.explode("place", empty_as_null=True, keep_nulls=True)
        .filter(pl.col("place").is_not_null())
        .filter(turn.struct.field("role") == "assistant")
    )
    found = found if every else found.filter(pl.col("place") == pl.col("place").max().over("record"))
    return found.select(
        "record", prompt=pl.col("messages").list.head(pl.col("place")), completion=turn.struct.field("content")
    )
