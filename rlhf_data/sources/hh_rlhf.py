"""HH-RLHF (Bai et al. 2022, arXiv:2204.05862): pairs of whole dialogues that differ in the last reply."""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

TABLES = {"raw": {"chosen": pl.String(), "rejected": pl.String()}}

FIRST_TURN = "\n\nHuman:"
_LAST_REPLY = r"(?s)^(?<before>.*)\n\nAssistant: ?(?<reply>.*)$"
_TURN = "\x1e"  # ASCII's record separator; a dialogue that holds one itself is refused


def read(raw: pl.DataFrame) -> Read:
    """Split both dialogues at the last "Assistant:" tag; what stands before it is the prompt.

    The first differing character would not do: replies often begin with the same words. Two turns of one side in a
    row stay two messages.

    Args:
        raw: record; chosen, rejected (String): whole dialogues, the preferred one first.

    Returns:
        rows: comparisons, in the order of `raw`;
        rejects: `prompt.mismatch` where the dialogues differ before the last reply, `dialogue.malformed` where one
        has no "Assistant:" tag, does not begin with "Human:", or is null.
    """
    split = raw.select("record", pl.col("chosen", "rejected").str.extract_groups(_LAST_REPLY))
    before = {side: pl.col(side).struct["before"] for side in ("chosen", "rejected")}
    formed = [text.str.starts_with(FIRST_TURN) & ~text.str.contains(_TURN, literal=True) for text in before.values()]
    split = split.with_columns(
        formed=pl.all_horizontal(formed).fill_null(False), same=before["chosen"] == before["rejected"]
    )
    rows = split.filter("formed", "same").select(
        "record",
        prompt=turns(before["chosen"]),
        completion=pl.col("chosen").struct["reply"],
        other=pl.col("rejected").struct["reply"],
        kind=pl.lit("comparison"),
        value=pl.lit(1.0),
    )
    malformed = reasons(
        split.filter(~pl.col("formed")), "dialogue.malformed", 'needs "Human:" first, "Assistant:" last'
    )
    lengths = pl.format("{} and {} characters before the last reply", *(b.str.len_chars() for b in before.values()))
    mismatched = reasons(split.filter("formed", ~pl.col("same")), "prompt.mismatch", lengths)
    return Read(rows, rejects=pl.concat([malformed, mismatched]))


def turns(dialogue: pl.Expr) -> pl.Expr:
    r"""A dialogue with "\n\nHuman:" and "\n\nAssistant:" before its turns, as messages."""
    marked = dialogue.str.replace_all(r"\n\n(Human|Assistant):", f"{_TURN}$1:").str.strip_prefix(_TURN)
    role = pl.element().str.starts_with("Human:")
    content = pl.element().str.replace(r"^(Human|Assistant): ?", "")
    message = pl.struct(role=pl.when(role).then(pl.lit("user")).otherwise(pl.lit("assistant")), content=content)
    return marked.str.split(_TURN).list.eval(message)
