"""What is asked of a scorer: a Parquet table of completions, each with its prompt. Needs no torch."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("completion_id", "prompt", "completion")


def request_ids(requests: Path) -> pa.Array:
    """The completion ids of a table of requests, in its order; an id may repeat.

    Raises:
        ValueError: a column that is not there, or has nulls.
    """
    names = pq.read_schema(requests).names
    if lacking := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{requests} has no column {', '.join(lacking)}: a request is {', '.join(COLUMNS)}")
    table = pq.read_table(requests, columns=list(COLUMNS))
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{requests} has {table[name].null_count} rows without {name}")
    return table["completion_id"].cast(pa.string()).combine_chunks()
