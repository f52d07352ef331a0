"""UltraFeedback in pairs (HuggingFaceH4/ultrafeedback_binarized): the best answer against one of the others.

Columns as on its data card; MIT. Made from UltraFeedback's overall scores for Zephyr (Tunstall et al. 2023,
arXiv:2310.16944).
"""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources import columns
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose

TABLES = {
    "raw": {
        **dict.fromkeys(("chosen", "rejected"), MESSAGES),
        **dict.fromkeys(("score_chosen", "score_rejected"), pl.Float64()),
    }
}
_SIDES = {"prompt": "chosen", "chosen": {"last_of": "chosen"}, "rejected": {"last_of": "rejected"}}


def read(raw: pl.DataFrame, *, judgment: str = "comparison") -> Read:
    """One comparison a record, or the two ratings that it was made from.

    Args:
        raw: record; chosen, rejected (messages): the same conversation with the two answers at its end; score_chosen,
            score_rejected (Float64): their overall scores, 1 to 10, larger is better.
        judgment: "comparison": chosen is better, but equal scores are a tie; "rating": the two scores.

    Returns:
        rows: in the order of `raw`; a null score is a missing verdict or rating;
        rejects: `prompt.mismatch` (the conversations differ before the answers), `score.contradicts` (of a comparison:
        rejected has the larger score).

    Raises:
        ValueError: no such judgment.
    """
    choose("judgment", judgment, ("comparison", "rating"))
    pairs = columns.read(raw, columns=_SIDES)
    scored = pairs.rows.join(raw.select("record", "score_chosen", "score_rejected"), on="record", maintain_order="left")
    if judgment == "comparison":
        gap = pl.col("score_chosen") - pl.col("score_rejected")
        against = (gap < 0).fill_null(False)
        shown = pl.format("chosen has {}, rejected {}", "score_chosen", "score_rejected")
        rejects = pl.concat([pairs.rejects, reasons(scored.filter(against), "score.contradicts", shown)])
        rows = scored.filter(~against).with_columns(value=0.5 + 0.5 * gap.sign())
        return Read(rows.drop("score_chosen", "score_rejected"), rejects=rejects)
    shared = ["record", "prompt", pl.lit("rating").alias("kind")]
    both = [
        scored.select(*shared, completion=text, value=score)
        for text, score in (("completion", "score_chosen"), ("other", "score_rejected"))
    ]
    return Read(pl.concat(both).sort("record", maintain_order=True), rejects=pairs.rejects)
