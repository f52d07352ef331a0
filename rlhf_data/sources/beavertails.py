"""BeaverTails (Ji et al. 2023, arXiv:2307.04657): answers that are safe or not; CC-BY-NC-4.0.

Columns as on the data card of PKU-Alignment/BeaverTails.
"""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {"prompt": "prompt", "completion": "response", "label": "is_safe"}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One label a record: 1 is a safe answer. Several people may have judged the same answer, one record each.

    Args:
        raw: record; prompt, response (String); is_safe (Boolean).

    Returns:
        rows: labels, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
