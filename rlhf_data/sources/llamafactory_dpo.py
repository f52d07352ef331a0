"""LLaMA-Factory's preference form: a conversation, then two answers as turns (dpo_en_demo, dpo_zh_demo)."""

import polars as pl

from rlhf_data.sources import columns, mapping
from rlhf_data.sources.observations import Read

COLUMNS = {
    "prompt": {
        "from": "conversations",
        "role": "from",
        "content": "value",
        "roles": {"human": "user", "gpt": "assistant"},
    },
    "chosen": "chosen.value",
    "rejected": "rejected.value",
}
TABLES = {"raw": mapping.wanted(COLUMNS)}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record, which chosen won.

    Args:
        raw: record; conversations: the context, a list of from (system, human, gpt) and value; chosen.value,
            rejected.value (String): the two answers.

    Returns:
        rows: comparisons, in the order of `raw`.
    """
    return columns.read(raw, columns=COLUMNS)
