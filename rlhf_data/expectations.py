"""What must hold of a table before it is published."""

from typing import Any

import polars as pl

from rlhf_data.accounting import Count, lost

TOLD = ("split", "source", "category", "label", "weight")  # the columns that expectations speak of, beside the prompt


def unmet(rows: pl.DataFrame, expect: dict[str, Any], *, refused: pl.DataFrame, counts: list[Count]) -> list[str]:
    """Each expectation that does not hold, as a sentence.

    Args:
        rows: `prompt` (anything that tells prompts apart), and of TOLD what the table has.
        expect: any of rows [fewest, most], quarantine_rate, label_balance [least, most], ess, categories {name: rows}.
        refused: the quarantine table.
        counts: the accounting of all steps before.
    """
    found = []
    fewest, most = expect.get("rows") or (None, None)
    if fewest is not None and rows.height < fewest:
        found.append(f"expect.rows: {rows.height} rows, fewer than {fewest}")
    if most is not None and rows.height > most:
        found.append(f"expect.rows: {rows.height} rows, more than {most}")
    if not rows.height:
        went = lost([count.as_dict() for count in counts], "quarantined", "filtered")
        reasons = ", ".join(f"{reason} {n}" for reason, n in went.most_common(5))
        found.append(f"no row is left; they went to: {reasons or 'nowhere, the sources are empty'}")
    limit, rate = expect.get("quarantine_rate"), refused.height / max(1, _read(counts))
    if limit is not None and rate > limit:
        codes = refused["code"].value_counts(sort=True).head(5)
        reasons = ", ".join(f"{code} {n}" for code, n in codes.iter_rows())
        found.append(
            f"expect.quarantine_rate: {refused.height} rows are refused, {rate:.1%} of what was read, "
            f"more than {limit:.1%}: {reasons}"
        )
    return found + _of_weights(rows, expect) + _of_labels(rows, expect) + _of_splits(rows)


def effective_rows(weight: pl.Series) -> float:
    """(Σw)² / Σw²: how many rows of equal weight would vary as little (Kish's effective sample size)."""
    squares = float((weight * weight).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def _of_weights(rows: pl.DataFrame, expect: dict[str, Any]) -> list[str]:
    train, found = rows.filter(pl.col("split") == "train"), []
    if (least := expect.get("ess")) is not None and train.height:
        share = effective_rows(train["weight"]) / train.height
        if share < least:
            found.append(
                f"expect.ess: the weights are worth {share:.1%} of the {train.height} train rows, less than {least:.1%}"
            )
    for category, fewest in (expect.get("categories") or {}).items():
        there = rows.filter(pl.col("category").cast(pl.String) == category).height
        if there < fewest:
            found.append(f"expect.categories: {there} rows of {category}, fewer than {fewest}")
    return found


def _of_labels(rows: pl.DataFrame, expect: dict[str, Any]) -> list[str]:
    if expect.get("label_balance") is None:
        return []
    least, most = expect["label_balance"]
    labels = rows["label"].drop_nulls()
    share = float(labels.sum()) / len(labels) if len(labels) else 0.0
    if (least is None or share >= least) and (most is None or share <= most):
        return []
    wanted = " to ".join("any" if bound is None else f"{bound:.1%}" for bound in (least, most))
    return [f"expect.label_balance: {share:.1%} of {len(labels)} labelled rows are desirable, not {wanted}"]


def _of_splits(rows: pl.DataFrame) -> list[str]:
    """A prompt in two splits is a fault of ours; nothing that holds one is published."""
    sides = rows.group_by("prompt").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    return [f"prompts stand in two splits, {sides.height} in all, such as {sides['prompt'][0]}"] if sides.height else []


def _read(counts: list[Count]) -> int:
    """How much was read: observations, or records where those are more."""
    entered: dict[str, int] = {}
    for count in counts:
        if count.unit in ("records", "observations"):
            entered[count.step] = max(entered.get(count.step, 0), count.rows_in)
    return sum(entered.values())
