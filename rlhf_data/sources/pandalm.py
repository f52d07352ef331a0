"""PandaLM's test set (Wang et al. 2023, arXiv:2306.05087): pairs, each judged by three annotators."""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
TABLES = {
    "raw": {
        **dict.fromkeys(("instruction", "input", "response1", "response2", "cmp_key"), pl.String()),
        **dict.fromkeys(ANNOTATORS, pl.Int64()),
    }
}


def read(raw: pl.DataFrame, *, first: int = 1, second: int = 2, tie: int | None = 0) -> Read:
    """Three comparisons a record, one of each annotator.

    Args:
        raw: record; instruction, input (String): the prompt, input may be empty; response1, response2 (String);
            cmp_key (String): the two models as A_B; annotator1, annotator2, annotator3 (Int64): verdicts.
        first: the verdict that response1 is better.
        second: the verdict that response2 is better.
        tie: the verdict that they are equal; None if there is none.

    Returns:
        rows: comparisons of response1 with response2, three in a row for each record;
        rejects: `verdict.unknown` for any other verdict.
    """
    codes = {first: 1.0, second: 0.0} | ({} if tie is None else {tie: 0.5})
    blank = pl.col("input").is_null() | (pl.col("input").str.strip_chars() == "")
    models = pl.col("cmp_key").str.split_exact("_", 1).struct
    votes = raw.select(
        "record",
        *ANNOTATORS,
        prompt=pl.when(blank).then("instruction").otherwise(pl.concat_str("instruction", "input", separator="\n\n")),
        completion="response1",
        other="response2",
        kind=pl.lit("comparison"),
        model=models.field("field_0"),
        other_model=models.field("field_1"),
    ).unpivot(ANNOTATORS, index=["record", "prompt", "completion", "other", "kind", "model", "other_model"],
              variable_name="annotator", value_name="verdict").sort("record", maintain_order=True)  # fmt: skip
    known = pl.col("verdict").is_null() | pl.col("verdict").is_in(list(codes))
    value = pl.col("verdict").replace_strict(codes, default=None, return_dtype=pl.Float64)
    shown = pl.format("{} is {}, not one of {}", "annotator", "verdict", pl.lit(", ".join(map(str, codes))))
    return Read(
        votes.filter(known).with_columns(value=value).drop("verdict"),
        rejects=reasons(votes.filter(~known), "verdict.unknown", shown),
    )
