"""The batches of a run as a table: what a step took can be looked up, and every rank can know it beforehand."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_data import files, rules
from rlhf_data.order import batches_from
from rlhf_data.training.batches import Rows


class Demands(NamedTuple):
    """What a rule wants of every step; see `order.epoch_batches`.

    Attributes:
        groups: the prompt of each row, where all answers to it belong in one step.
        labels: the class of each row, where every step needs both.
        even: whether no step may be smaller than the others: a mean or a rank over few rows is another rule.
    """

    groups: Sequence[str] | np.ndarray | None
    labels: Sequence[bool] | np.ndarray | None
    even: bool


def demands(rows: Rows, rule: rules.Rule) -> Demands:
    """What `rule` wants of the steps over `rows`: read off what it declares that it needs."""
    whole = rules.keeps_groups(rule)
    both = rules.needs_both_classes(rule) and not whole
    return Demands(
        groups=rows.columns["prompt_id"] if whole else None,
        labels=rows.columns["label"] if both else None,
        even=rules.averages_over_batch(rule),
    )


def batches(
    run: Path | None, step: int, ids: Sequence[str], demands: Demands, *, size: int, seed: int
) -> Iterator[list[int]]:
    """What `batches_from` gives from `step` on; the table of each epoch is in the run's folder before its first step.

    Args:
        run: its folder; None writes no table, as is right for all processes of a run but one.
        step: counted from 0.
        ids: of the rows.
        demands: of the rule.
        size: rows of a step.
        seed: of the order.

    Raises:
        ValueError: see `batches_from`.
    """

    def write(epoch: int, made: list[np.ndarray]) -> None:
        planned = table(made, ids, first=epoch * len(made))
        assert run is not None
        _write(run / "batches" / f"epoch-{epoch:05d}.parquet", planned)

    begins = None if run is None else write
    return batches_from(step, ids, size=size, seed=seed, **demands._asdict(), begins=begins)


def table(batches: Sequence[np.ndarray], ids: Sequence[str], *, first: int) -> pa.Table:
    """The steps of an epoch, a line a row.

    Args:
        batches: row numbers of each step.
        ids: of all rows.
        first: the number of the epoch's first step, from 0.

    Returns:
        step (int64, counted from 1, as in metrics.jsonl), position (int32, in the step), row (int64, number among the
        rows that are trained on), row_id.
    """
    sizes = [len(rows) for rows in batches]
    rows = np.concatenate(batches)
    return pa.table(
        {
            "step": np.repeat(np.arange(first + 1, first + 1 + len(batches)), sizes),
            "position": np.concatenate([np.arange(n, dtype=np.int32) for n in sizes]),
            "row": rows,
            "row_id": pa.array(ids, pa.string()).take(pa.array(rows)),
        }
    )


def _write(path: Path, planned: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as temporary:
        pq.write_table(planned, temporary, compression="zstd")
