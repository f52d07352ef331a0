"""Prometheus's evaluation files (Kim et al. 2023, arXiv:2310.08491): all of a judge's prompt in one text."""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

TABLES = {
    "raw": {
        **dict.fromkeys(("instruction", "response_source", "category"), pl.String()),
        "gpt4_score": pl.List(pl.Int64()),
    }
}
_SECTIONS = (
    r"(?s)###The instruction to evaluate:\n(?<prompt>.*?)\s*\n###Response to evaluate:\n(?<completion>.*?)"
    r"\n\n###Reference Answer \(Score 5\):\n.*?\n###Score Rubrics:\n(?<rubric>.*?)\n\n###Feedback:"
)
_ONCE = ("###The instruction to evaluate:", "###Response to evaluate:", "###Reference Answer (Score 5):",
         "###Score Rubrics:", "###Feedback:")  # fmt: skip


def read(raw: pl.DataFrame) -> Read:
    """One rating (1 to 5) for each sample of the judge.

    A rubric belongs to a question: ratings of different questions are not on one scale, those of one question are.

    Args:
        raw: record; instruction (String): the judge's whole prompt, in sections that begin with marks; response_source
            (String): who answered; category (String); gpt4_score: a list of integers, samples of the same judge.

    Returns:
        rows: ratings in the order of `raw`, then of the samples, who are the annotators gpt4-1, gpt4-2 and so on;
        rejects: `sections.malformed` (a mark is missing, or stands twice: where does the answer end?),
        `rating.out_of_range` (not 1 to 5), `rating.missing` (no score at all).
    """
    text = pl.col("instruction")
    marked = pl.all_horizontal(text.str.count_matches(mark, literal=True) == 1 for mark in _ONCE)
    parts = raw.with_columns(
        parts=text.str.extract_groups(_SECTIONS), scores=pl.col("gpt4_score").fill_null([])
    ).with_columns(formed=(marked & pl.col("parts").struct.field("prompt").is_not_null()).fill_null(False))
    sound = parts.filter("formed", pl.col("scores").list.len() > 0)
    samples = pl.concat_str(pl.lit("gpt4-"), pl.int_range(1, pl.len() + 1).over("record"))
    rated = (
        sound.select(
            "record",
            "category",
            prompt=pl.col("parts").struct.field("prompt"),
            completion=pl.col("parts").struct.field("completion"),
            model="response_source",
            kind=pl.lit("rating"),
            value="scores",
        )
        .explode("value", empty_as_null=True, keep_nulls=True)
        .with_columns(annotator=samples, value=pl.col("value").cast(pl.Float64))
    )
    known = pl.col("value").is_null() | pl.col("value").is_between(1, 5)
    malformed = reasons(parts.filter(~pl.col("formed")), "sections.malformed", f"needs each once: {', '.join(_ONCE)}")
    empty = reasons(parts.filter("formed", pl.col("scores").list.len() == 0), "rating.missing", "no scores")
    outside = reasons(rated.filter(~known), "rating.out_of_range", pl.col("value"))
    return Read(rated.filter(known), rejects=pl.concat([malformed, empty, outside]))
