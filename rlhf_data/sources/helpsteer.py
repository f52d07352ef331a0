"""HelpSteer and HelpSteer2 (Wang et al. 2023, arXiv:2311.09528; 2024, arXiv:2406.08673): answers rated on five aspects.

Columns as on the data cards of nvidia/HelpSteer and nvidia/HelpSteer2; CC-BY-4.0.
"""

import polars as pl

from rlhf_data.sources.dialogues import turns
from rlhf_data.sources.observations import Read, reasons

ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TABLES = {"raw": {"prompt": pl.String(), "response": pl.String(), **dict.fromkeys(ASPECTS, pl.Int64())}}
_TAG = r"\n*<extra_id_1>(User|Assistant)\n+"


def read(raw: pl.DataFrame) -> Read:
    """One rating (0 to 4, larger is more of the aspect) for each answer and aspect.

    More is better for the first three; complexity and verbosity describe a style. Only `rate.aspects` says what counts.

    Args:
        raw: record; prompt (String): the user's turn, or several turns with <extra_id_1>Assistant and <extra_id_1>User
            on lines of their own between them; response (String); the five aspects (Int64).

    Returns:
        rows: ratings in the order of `raw`, then of ASPECTS; a null rating is a missing one;
        rejects: `rating.out_of_range` (not 0 to 4), `dialogue.malformed` (the prompt cannot be taken apart).
    """
    asked = raw.with_columns(prompt=messages(pl.col("prompt")), given=pl.col("prompt").is_not_null())
    malformed = pl.col("prompt").is_null() & pl.col("given")
    rated = (
        asked.filter(~malformed)
        .unpivot(ASPECTS, index=["record", "prompt", "response"], variable_name="aspect")
        .sort("record", maintain_order=True)
        .rename({"response": "completion"})
        .with_columns(pl.col("value").cast(pl.Float64), kind=pl.lit("rating"))
    )
    known = pl.col("value").is_null() | pl.col("value").is_between(0, 4)
    shown = pl.format("{}={}", "aspect", "value")
    rejects = [
        reasons(asked.filter(malformed), "dialogue.malformed"),
        reasons(rated.filter(~known), "rating.out_of_range", shown),
    ]
    return Read(rated.filter(known), rejects=pl.concat(rejects))


def messages(prompt: pl.Expr) -> pl.Expr:
    """HelpSteer2's prompt as messages: the first turn has no tag."""
    return turns(pl.concat_str(pl.lit("<extra_id_1>User\n"), prompt), _TAG, user="User")
