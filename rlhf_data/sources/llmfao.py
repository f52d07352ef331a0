"""LLMFAO (Ustalov 2023, github.com/dustalov/llmfao): arena battles with crowd workers' votes, in several files."""

import polars as pl

from rlhf_data.sources.cells import SCALAR
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import once

TABLES = {
    "votes": {"id": SCALAR, "worker": SCALAR, "winner": pl.String()},
    "battles": {
        **dict.fromkeys(("id", "model_x", "model_y"), SCALAR),
        **dict.fromkeys(("text", "result_x", "result_y", "type"), pl.String()),
    },
    "models": {"id": SCALAR, "name": pl.String()},
}
_WINNERS = {"left": 1.0, "right": 0.0, "tie": 0.5}


def read(votes: pl.DataFrame, battles: pl.DataFrame, models: pl.DataFrame) -> Read:
    """One comparison a vote: left is the answer of model_x, right that of model_y.

    Args:
        votes: record; id (of the battle), worker, winner (String): left, right or tie.
        battles: id, text (the prompt), type (its kind), model_x, result_x, model_y, result_y (String).
        models: id, name (String).

    Returns:
        rows: comparisons of result_x with result_y, in the order of `votes`;
        rejects: `battle.missing` for a vote on no battle, `verdict.unknown` for another winner.

    Raises:
        ValueError: a battle or a model occurs twice, so that a vote would count twice.
    """
    for name, table in (("battles", battles), ("models", models)):
        once("llmfao", name, table, "id")
    found = battles.drop("record").with_columns(battle=pl.lit(True))
    joined = votes.join(found, on="id", how="left", maintain_order="left")
    names = dict(models.select("id", "name").iter_rows())
    known = pl.col("winner").is_null() | pl.col("winner").is_in(list(_WINNERS))
    exists = pl.col("battle").is_not_null()
    rows = joined.filter(exists, known).select(
        "record",
        prompt="text",
        completion="result_x",
        other="result_y",
        kind=pl.lit("comparison"),
        value=pl.col("winner").replace_strict(_WINNERS, default=None, return_dtype=pl.Float64),
        annotator="worker",
        position=pl.lit("first"),
        model=pl.col("model_x").replace(names),
        other_model=pl.col("model_y").replace(names),
        category="type",
    )
    orphans = reasons(joined.filter(~exists), "battle.missing", pl.format("no battle {}", "id"))
    unknown = reasons(joined.filter(exists, ~known), "verdict.unknown", pl.col("winner"))
    return Read(rows, rejects=pl.concat([orphans, unknown]))
