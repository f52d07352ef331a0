"""TRL's unpaired form (trl-lib/kto-mix-14k): a prompt, a completion and whether it is desirable."""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {"prompt": "prompt", "completion": {"last_of": "completion"}, "label": "label"}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One label a record.

    Args:
        raw: record; prompt (messages); completion (messages): one, of the assistant; label (Boolean): desirable.

    Returns:
        rows: labels, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
