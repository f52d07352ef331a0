"""UltraFeedback (Cui et al. 2023, arXiv:2310.01377): four answers a prompt, each rated on four aspects."""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
_RATING = pl.Struct({"Rating": pl.String()})
_ANSWER = pl.Struct(
    {
        "model": pl.String(),
        "custom_system_prompt": pl.String(),
        "response": pl.String(),
        "annotations": pl.Struct(dict.fromkeys(ASPECTS, _RATING)),
    }
)
TABLES = {"raw": {"instruction": pl.String(), "source": pl.String(), "completions": pl.List(_ANSWER)}}


def read(raw: pl.DataFrame, *, system: str = "drop") -> Read:
    """One rating for each answer and aspect.

    Each answer was written under a system prompt of its own. Kept, it belongs to the prompt, so that the four answers
    stand under up to four prompts and hardly a pair remains; dropped, they share one prompt and the answers' style
    has causes that the prompt does not show.

    Args:
        raw: record; instruction, source (String); completions: list of model, custom_system_prompt, response and
            annotations, by aspect a Rating, which is a text.
        system: "drop" the system prompts or "keep" them.

    Returns:
        rows: ratings in the order of the answers, then of ASPECTS; `source` is the category;
        rejects: `rating.not_a_number` ("N/A"), `rating.missing`, `completions.empty`;
        skipped: `aspect.absent` where an answer was not rated on an aspect at all.

    Raises:
        ValueError: system is neither drop nor keep.
    """
    if system not in ("drop", "keep"):
        raise ValueError(f"system is {system!r}: it must be drop or keep")
    answers = raw.explode("completions", empty_as_null=True, keep_nulls=True).unnest("completions")
    none = answers.filter(pl.all_horizontal(pl.col(name).is_null() for name in ("model", "response", "annotations")))
    given = answers.join(none, on="record", how="anti", maintain_order="left") if none.height else answers
    user = pl.struct(role=pl.lit("user"), content=pl.col("instruction"))
    before = pl.struct(role=pl.lit("system"), content=pl.col("custom_system_prompt"))
    shown = pl.lit(system == "keep") & (pl.col("custom_system_prompt").str.strip_chars() != "").fill_null(False)
    rated = pl.concat_list(
        pl.struct(
            aspect=pl.lit(aspect),
            rated=pl.col("annotations").struct.field(aspect).is_not_null(),
            text=pl.col("annotations").struct.field(aspect).struct.field("Rating"),
        )
        for aspect in ASPECTS
    )
    ratings = given.select(
        "record",
        "model",
        prompt=pl.when(shown).then(pl.concat_list(before, user)).otherwise(pl.concat_list(user)),
        completion="response",
        kind=pl.lit("rating"),
        category="source",
        rated=rated,
    )
    ratings = ratings.explode("rated", empty_as_null=True, keep_nulls=True).unnest("rated")
    ratings = ratings.with_columns(value=pl.col("text").str.strip_chars().cast(pl.Float64, strict=False))
    missing = pl.col("rated") & pl.col("text").is_null()
    not_a_number = pl.col("text").is_not_null() & pl.col("value").is_null()
    return Read(
        ratings.filter(pl.col("value").is_not_null()).drop("rated", "text"),
        rejects=pl.concat(
            [
                reasons(ratings.filter(not_a_number), "rating.not_a_number", pl.format("{}={}", "aspect", "text")),
                reasons(ratings.filter(missing), "rating.missing", pl.col("aspect")),
                reasons(
                    none.unique("record", maintain_order=True),
                    "completions.empty",
                    "an answer is null, or none is there",
                ),
            ]
        ),
        skipped=reasons(ratings.filter(~pl.col("rated")), "aspect.absent", pl.col("aspect")),
    )
