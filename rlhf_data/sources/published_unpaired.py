"""An unpaired snapshot of ours as raw data: its rows come back as the ratings and labels that they hold."""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.observations import Read
from rlhf_data.sources.verdicts import choose

TABLES = {
    "raw": {
        "prompt": MESSAGES,
        **dict.fromkeys(("completion", "model", "category"), pl.String()),
        **dict.fromkeys(("rating", "reward"), pl.Float64()),
        "label": pl.Boolean(),
    }
}


def read(raw: pl.DataFrame, *, value: str = "rating") -> Read:
    """The rating and the label of each row; a row without either is a demonstration.

    What annotators said one by one is behind the rating and does not come back, nor does the row's weight.

    Args:
        raw: record; prompt (messages); completion, model, category (String); rating, reward (Float64); label (Boolean).
        value: which number is the rating: "rating", in its source's units and, where that is null, the reward; or
            "reward", what a rule would consume.

    Returns:
        rows: in the order of `raw`, a rating before its row's label.

    Raises:
        ValueError: no such value.
    """
    choose("value", value, ("rating", "reward"))
    number = pl.coalesce("rating", "reward") if value == "rating" else pl.col("reward")
    held = raw.with_columns(_rating=number, _label=pl.col("label").cast(pl.Float64))
    shared = ("record", "prompt", "completion", "model", "category")
    rated, labelled = pl.col("_rating").is_not_null(), pl.col("_label").is_not_null()
    none = pl.lit(None, dtype=pl.Float64)
    parts = [
        held.filter(rated).select(*shared, kind=pl.lit("rating"), value="_rating"),
        held.filter(labelled).select(*shared, kind=pl.lit("label"), value="_label"),
        held.filter(~rated & ~labelled).select(*shared, kind=pl.lit("demonstration"), value=none),
    ]
    return Read(pl.concat(parts).sort("record", maintain_order=True))
