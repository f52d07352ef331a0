"""Google's MQM ratings of translations (Freitag et al. 2021, arXiv:2104.14478): marked errors, summed to a score."""

import polars as pl

from rlhf_data.sources.cells import SCALAR
from rlhf_data.sources.observations import Read, reasons

_OUTPUT = ("system", "doc", "doc_id", "seg_id", "rater")
TABLES = {
    "raw": {
        **dict.fromkeys(_OUTPUT, SCALAR),
        **dict.fromkeys(("source", "target", "category", "severity"), pl.String()),
    }
}


def read(
    raw: pl.DataFrame,
    *,
    major: float = 5.0,
    minor: float = 1.0,
    punctuation: float = 0.1,
    non_translation: float = 25.0,
) -> Read:
    """One rating for each output and rater: minus the weights of the errors marked in it, so 0 is best.

    The weights are those of github.com/google/wmt-mqm-human-evaluation. An error in the source counts like any other of
    its severity. Several systems may give the same text; those are ratings of one answer.

    Args:
        raw: record; system, doc, doc_id, seg_id, rater (String): one output; source, target (String): what is
            marked stands between <v> and </v>, an omission in the source; category, severity (String):
            one row a marked error, or one with No-error.
        major: of an error whose severity is Major.
        minor: of one whose severity is Minor.
        punctuation: of one that is Minor and Fluency/Punctuation.
        non_translation: of the category Non-translation.

    Returns:
        rows: ratings, where the first row of an output stands;
        rejects: `severity.unknown`, `text.mismatch` (rows of one output differ in source or target, marks aside): all
        rows of that output, whose sum would be wrong;
        skipped: `error.summed` for the other rows of an output.
    """
    weight = (
        pl.when(pl.col("category").str.starts_with("Non-translation")).then(non_translation)
        .when(pl.col("severity") == "Major").then(major)
        .when((pl.col("severity") == "Minor") & (pl.col("category") == "Fluency/Punctuation")).then(punctuation)
        .when(pl.col("severity") == "Minor").then(minor)
        .when(pl.col("severity").is_in(["No-error", "no-error"])).then(0.0)
    )  # fmt: skip
    unmarked = pl.col("source", "target").str.replace_all(r"</?v>", "")
    rows = raw.with_columns(unmarked, weight=weight).with_columns(
        first=pl.col("record").first().over(_OUTPUT),
        total=pl.col("weight").sum().over(_OUTPUT),
        unknown=pl.col("weight").is_null().any().over(_OUTPUT),
        texts=pl.struct("source", "target").n_unique().over(_OUTPUT),
        strange=pl.col("severity").filter(pl.col("weight").is_null()).first().over(_OUTPUT),
    )
    unknown, several = pl.col("unknown"), pl.col("texts") > 1
    sound = rows.filter(~unknown, ~several)
    ratings = sound.filter(pl.col("record") == pl.col("first")).select(
        "record",
        prompt="source",
        completion="target",
        kind=pl.lit("rating"),
        value=0.0 - pl.col("total"),
        annotator="rater",
        model="system",
    )
    severity = pl.format("the output has an error of severity {}", pl.col("strange").fill_null("null"))
    return Read(
        ratings,
        rejects=pl.concat(
            [
                reasons(rows.filter(unknown), "severity.unknown", severity),
                reasons(rows.filter(~unknown, several), "text.mismatch", pl.format("{} texts in one output", "texts")),
            ]
        ),
        skipped=reasons(
            sound.filter(pl.col("record") != pl.col("first")), "error.summed", pl.format("with record {}", "first")
        ),
    )
