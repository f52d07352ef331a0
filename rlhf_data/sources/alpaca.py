"""Stanford Alpaca's form (tatsu-lab/alpaca, CC-BY-NC-4.0, and many others): demonstrations, not judgments."""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {"prompt": {"concat": ["instruction", "input"]}, "completion": "output"}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One demonstration a record.

    Args:
        raw: record; instruction, input (String): the prompt, input may be empty; output (String).

    Returns:
        rows: demonstrations, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
