"""HelpSteer2-Preference (Wang et al. 2024, arXiv:2410.01257): pairs with the strength of a preference.

Columns as on the data card of nvidia/HelpSteer2, file preference/preference.jsonl; CC-BY-4.0.
"""

import polars as pl

from rlhf_data.sources.helpsteer import messages
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import compared

TABLES = {
    "raw": {
        **dict.fromkeys(("prompt", "response_1", "response_2"), pl.String()),
        "preference_strength": pl.Int64(),
    }
}
# -3: response 1 is much better … 3: response 2 is much better.
STRENGTHS = {-3: 1.0, -2: 1.0, -1: 1.0, 0: 0.5, 1: 0.0, 2: 0.0, 3: 0.0}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record: the sign of the strength says which response is better, 0 is a tie.

    Args:
        raw: record; prompt (String, several turns as in HelpSteer2), response_1, response_2 (String);
            preference_strength (Int64): -3 (response_1 is much better) to 3 (response_2 is much better).

    Returns:
        rows: comparisons of response_1 with response_2, in the order of `raw`;
        rejects: `verdict.unknown` for another strength, `dialogue.malformed`.
    """
    asked = raw.with_columns(prompt=messages(pl.col("prompt")), given=pl.col("prompt").is_not_null())
    malformed = pl.col("prompt").is_null() & pl.col("given")
    rows = asked.filter(~malformed).select(
        "record", "prompt", completion="response_1", other="response_2", verdict="preference_strength"
    )
    found = compared(rows, STRENGTHS)
    return found._replace(rejects=pl.concat([reasons(asked.filter(malformed), "dialogue.malformed"), found.rejects]))
