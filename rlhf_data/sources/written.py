"""What a policy wrote for us (see `sampled`): answers that nobody has judged yet."""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose

TABLES = {
    "raw": {
        "prompt": MESSAGES,
        **dict.fromkeys(("completion", "category"), pl.String()),
        "finished": pl.Boolean(),
    }
}


def read(raw: pl.DataFrame, *, model: str | None = None, unfinished: str = "drop") -> Read:
    """One demonstration a sample.

    Args:
        raw: record; prompt (messages); completion, category (String); finished (Boolean): whether the policy ended it.
        model: the policy's name.
        unfinished: "drop" answers that were cut off at the most tokens, or "keep" them: they are then taken for whole,
            so training on them teaches to stop where they were cut.

    Returns:
        rows: in the order of `raw`;
        skipped: `sample.unfinished`.

    Raises:
        ValueError: no such choice.
    """
    choose("unfinished", unfinished, ("keep", "drop"))
    cut = ~pl.col("finished") if unfinished == "drop" else pl.lit(False)
    kept = raw.filter(~cut).select(
        "record",
        "prompt",
        "completion",
        "category",
        kind=pl.lit("demonstration"),
        value=pl.lit(None, dtype=pl.Float64),
        model=pl.lit(model, dtype=pl.String),
    )
    return Read(kept, skipped=reasons(raw.filter(cut), "sample.unfinished"))
