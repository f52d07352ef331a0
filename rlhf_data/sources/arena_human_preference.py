"""Arena battles of lmarena-ai/arena-human-preference-55k (the LMSYS competition's train.csv).

Columns as on its data card: one column for each outcome, and turns as JSON in text; Apache-2.0.
"""

import json
from typing import Any

import polars as pl

from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.readers import encodes
from rlhf_data.sources.verdicts import compared

_TEXTS = ("prompt", "response_a", "response_b")
_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
TABLES = {
    "raw": {
        **dict.fromkeys((*_TEXTS, "model_a", "model_b"), pl.String()),
        **dict.fromkeys(_WINNERS, pl.Int64()),
    }
}
_TURNS = pl.List(pl.String())


def read(raw: pl.DataFrame) -> Read:
    """One comparison for each battle of one turn.

    In a longer battle each model went on from its own answers, so the two last answers have no prompt in common.

    Args:
        raw: record; prompt, response_a, response_b (String): JSON lists of texts, one a turn; model_a, model_b
            (String); winner_model_a, winner_model_b, winner_tie (Int64): 1 in one of them, 0 in the others.

    Returns:
        rows: comparisons of response_a with response_b, in the order of `raw`; a is called first;
        rejects: `turns.malformed` (no JSON list of texts, lists of different lengths, half of a surrogate pair),
        `verdict.unknown` (not one 1 and two 0; null in one of them);
        skipped: `turns.several`.
    """
    parsed = raw.with_columns(pl.Series(name, [_turns(cell) for cell in raw[name]], dtype=_TURNS) for name in _TEXTS)
    lengths = [pl.col(name).list.len() for name in _TEXTS]
    formed = pl.all_horizontal(length == lengths[0] for length in lengths).fill_null(False) & (lengths[0] > 0)
    several = formed & (lengths[0] > 1)
    outcome = pl.concat_str(*_WINNERS, separator="").fill_null("null")
    rows = parsed.filter(formed, ~several).select(
        "record",
        prompt=pl.col("prompt").list.first(),
        completion=pl.col("response_a").list.first(),
        other=pl.col("response_b").list.first(),
        verdict=outcome,
        position=pl.lit("first"),
        model="model_a",
        other_model="model_b",
    )
    found = compared(rows, {"100": 1.0, "010": 0.0, "001": 0.5})
    return Read(
        found.rows,
        rejects=pl.concat([reasons(parsed.filter(~formed), "turns.malformed"), found.rejects]),
        skipped=reasons(parsed.filter(several), "turns.several", pl.format("{} turns", lengths[0])),
    )


def _turns(cell: str | None) -> list[str | None] | None:
    """A cell's list; null where it is none. A null answer stays null: it is a missing completion."""
    # No expression decodes JSON cell by cell: one broken cell would fail the column.
    try:
        value: Any = json.loads(cell or "")
    except (ValueError, RecursionError):
        return None
    sound = isinstance(value, list) and all(item is None or (isinstance(item, str) and encodes(item)) for item in value)
    return value if sound else None
