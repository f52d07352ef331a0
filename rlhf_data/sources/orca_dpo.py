"""Orca in pairs (Intel/orca_dpo_pairs; Apache-2.0): a strong model's answer against a weaker one's."""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {"system": "system", "prompt": "question", "chosen": "chosen", "rejected": "rejected"}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record, which chosen won: by who wrote it, nobody judged it.

    Args:
        raw: record; system (String, may be empty), question, chosen, rejected (String).

    Returns:
        rows: comparisons, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
