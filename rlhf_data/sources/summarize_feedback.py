"""Comparisons of summaries (Stiennon et al. 2020, arXiv:2009.01325; openai/summarize_from_feedback, comparisons).

Fields as in the example of its repository's README (github.com/openai/summarize-from-feedback).
"""

import polars as pl

from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import compared

_INFO = ("post", "title", "subreddit", "article")
_SUMMARY = pl.Struct({"text": pl.String(), "policy": pl.String()})
TABLES = {
    "raw": {
        "info": pl.Struct(dict.fromkeys(_INFO, pl.String())),
        "summaries": pl.List(_SUMMARY),
        "choice": pl.Int64(),
        "worker": pl.String(),
    }
}


def read(raw: pl.DataFrame) -> Read:
    """One comparison a record, of the two summaries.

    Args:
        raw: record; info: post, title, subreddit (of Reddit), article (of news) (String); summaries: two, each with
            text and policy, the model that wrote it; choice (Int64): 0 or 1, the place of the better one; worker
            (String).

    Returns:
        rows: comparisons of the first summary with the second, in the order of `raw`; the prompt is the text that was
        summarised between its headings and "TL;DR:"; the subreddit is the category;
        rejects: `summaries.malformed` (not two), `post.missing` (neither post nor article), `verdict.unknown`.
    """
    info = {name: pl.col("info").struct.field(name) for name in _INFO}
    headings = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("Article: ", "article"))
    parts = [
        pl.when(info[name].str.strip_chars() != "").then(pl.concat_str(pl.lit(head), info[name]))
        for head, name in headings
    ]
    two = pl.col("summaries").list.len().fill_null(0) == 2
    text = pl.any_horizontal(info[name].str.strip_chars() != "" for name in ("post", "article")).fill_null(False)
    sides = [pl.col("summaries").list.get(i, null_on_oob=True).struct for i in (0, 1)]
    rows = raw.filter(two, text).select(
        "record",
        prompt=pl.concat_str(*parts, pl.lit("TL;DR:"), separator="\n\n", ignore_nulls=True),
        completion=sides[0].field("text"),
        other=sides[1].field("text"),
        verdict="choice",
        annotator="worker",
        position=pl.lit("first"),
        model=sides[0].field("policy"),
        other_model=sides[1].field("policy"),
        category=info["subreddit"],
    )
    found = compared(rows, {0: 1.0, 1: 0.0})
    short = reasons(raw.filter(~two), "summaries.malformed", pl.format("{}", pl.col("summaries").list.len()))
    return found._replace(rejects=pl.concat([short, reasons(raw.filter(two, ~text), "post.missing"), found.rejects]))
