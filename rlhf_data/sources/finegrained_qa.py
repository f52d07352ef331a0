"""Fine-grained feedback (Wu et al. 2023, arXiv:2306.01693): four answers, six verdicts, marked errors."""

from itertools import combinations

import polars as pl

from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose, compared

ERRORS = ("Irrelevant", "Wrong-Grounding", "Unverifiable", "Redundant", "Incoherent")
MISSING = "missing-info"
_ANSWERS = tuple(f"prediction {i}" for i in range(1, 5))
_PAIRS = tuple(combinations(_ANSWERS, 2))  # (1,2) (1,3) (1,4) (2,3) (2,4) (3,4), as `preference` has them
_FEEDBACK = pl.Struct(
    {
        "errors": pl.List(pl.Struct({"error type": pl.String(), "start": pl.Int64(), "end": pl.Int64()})),
        MISSING: pl.List(pl.Struct({"start": pl.Int64()})),
    }
)
TABLES = {
    "raw": {
        "question": pl.String(),
        "passages": pl.List(pl.List(pl.String())),
        **dict.fromkeys(_ANSWERS, pl.String()),
        "preference": pl.List(pl.Int64()),
        "feedback": _FEEDBACK,
    }
}
_CODES = {1: 1.0, 2: 0.0, 0: 0.5}


def read(raw: pl.DataFrame, *, judgment: str = "verdicts", passages: bool = True) -> Read:
    """The six verdicts of a record as six comparisons, or the errors marked in its first answer as ratings.

    Verdicts stay verdicts: where a equals b, b beats c, and a equals c, no ranks would say the same.

    Args:
        raw: record; question, prediction 1 to prediction 4 (String); passages: lists of a title and sentences;
            preference: six integers for the pairs (1,2) (1,3) (1,4) (2,3) (2,4) (3,4), 1 the first is better, 2 the
            second, 0 equal; feedback: errors (error type, start, end: characters of prediction 1), missing-info.
        judgment: "verdicts", or "errors": one rating of prediction 1 for each kind of error (and for missing-info),
            minus the number of places where it was marked, so 0 is best.
        passages: whether the passages that an answer should rest on stand in the prompt, below the question.

    Returns:
        rows: in the order of `raw`, then of the pairs or of the kinds of errors;
        rejects: `preference.malformed` (not six verdicts), `verdict.unknown`, `error.unknown` (a kind of error not in
        ERRORS: none of the record's counts is then right), `span.out_of_range` (a mark that is not inside the answer).

    Raises:
        ValueError: no such judgment.
    """
    choose("judgment", judgment, ("verdicts", "errors"))
    text = pl.col("passages").list.eval(
        pl.concat_str(
            pl.element().list.get(0, null_on_oob=True),
            pl.element().list.slice(1).list.join(" ", ignore_nulls=True),
            separator="\n",
        )
    )
    both = pl.concat_str(pl.col("question"), text.list.join("\n\n", ignore_nulls=True), separator="\n\n")
    some = pl.lit(passages) & (pl.col("passages").list.len() > 0).fill_null(False)
    asked = raw.with_columns(prompt=pl.when(some).then(both).otherwise("question"))
    return _verdicts(asked) if judgment == "verdicts" else _errors(asked)


def _verdicts(asked: pl.DataFrame) -> Read:
    six = pl.col("preference").list.len().fill_null(0) == len(_PAIRS)
    short = asked.filter(~six)
    sound = asked.filter(six)
    pairs = pl.concat(
        sound.select(
            "record", "prompt", completion=first, other=second, verdict=pl.col("preference").list.get(i), pair=pl.lit(i)
        )
        for i, (first, second) in enumerate(_PAIRS)
    )
    found = compared(pairs.sort("record", "pair").drop("pair"), _CODES)
    malformed = reasons(short, "preference.malformed", pl.format("{} verdicts, not 6", pl.col("preference").list.len()))
    return Read(found.rows, rejects=pl.concat([malformed, found.rejects]))


def _errors(asked: pl.DataFrame) -> Read:
    marks = pl.col("feedback").struct.field("errors")
    kinds = marks.list.eval(pl.element().struct.field("error type"))
    ends = marks.list.eval(pl.element().struct.field("end")).list.max()
    starts = marks.list.eval(pl.element().struct.field("start")).list.min()
    strange = kinds.list.eval(pl.element().filter(~pl.element().is_in(ERRORS)))
    outside = (ends > pl.col(_ANSWERS[0]).str.len_chars()) | (starts < 0)
    coded = asked.with_columns(
        code=pl.when(strange.list.len() > 0)
        .then(pl.lit("error.unknown"))
        .when(outside)
        .then(pl.lit("span.out_of_range")),
        detail=pl.when(strange.list.len() > 0).then(strange.list.join(", ", ignore_nulls=True)),
    )
    sound, refused = coded.filter(pl.col("code").is_null()), coded.filter(pl.col("code").is_not_null())
    counts = {kind: kinds.list.count_matches(kind) for kind in ERRORS}
    counts[MISSING] = pl.col("feedback").struct.field(MISSING).list.len()
    index = ["record", "prompt", _ANSWERS[0]]
    rated = sound.select(*index, **{kind: -count.cast(pl.Float64) + 0.0 for kind, count in counts.items()})
    rows = rated.unpivot(list(counts), index=index, variable_name="aspect").sort("record", maintain_order=True)
    return Read(
        rows.rename({_ANSWERS[0]: "completion"}).with_columns(kind=pl.lit("rating")),
        rejects=refused.select("record", "code", "detail"),
    )
