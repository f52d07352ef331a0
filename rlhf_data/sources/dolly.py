"""Dolly's instructions (databricks/databricks-dolly-15k; CC-BY-SA-3.0): demonstrations, not judgments."""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {"prompt": {"concat": ["instruction", "context"]}, "completion": "response", "category": "category"}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One demonstration a record.

    Args:
        raw: record; instruction, context (String): the prompt, context may be empty; response, category (String).

    Returns:
        rows: demonstrations, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
