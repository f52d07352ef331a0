"""LLaMA-Factory's KTO form: a conversation whose last answer has a thumb up or down."""

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources import columns
from rlhf_data.sources.observations import Read

TABLES = {"raw": {"messages": MESSAGES, "label": pl.Boolean()}}
COLUMNS = {"prompt": "messages", "completion": {"last_of": "messages"}, "label": "label"}


def read(raw: pl.DataFrame) -> Read:
    """One label a record; the messages before the last are the prompt.

    Args:
        raw: record; messages (List(Struct{role, content})), the last one the judged answer; label (Boolean): desirable.

    Returns:
        rows: labels, in the order of `raw`; a conversation that does not end with the assistant has no completion.
    """
    return columns.read(raw, columns=COLUMNS)
