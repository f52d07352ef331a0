"""FastChat's Vicuna evaluation (github.com/lm-sys/FastChat): a judge scores two answers at once."""

import polars as pl

from rlhf_data.sources.cells import SCALAR
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import choose, once

TABLES = {
    "reviews": {
        **dict.fromkeys(("question_id", "answer1_id", "answer2_id", "reviewer_id"), SCALAR),
        "score": pl.List(pl.Float64()),
    },
    "answers": {"answer_id": SCALAR, "question_id": SCALAR, "model_id": pl.String(), "text": pl.String()},
    "questions": {"question_id": SCALAR, "text": pl.String(), "category": pl.String()},
}


def read(
    reviews: pl.DataFrame, answers: pl.DataFrame, questions: pl.DataFrame, *, judgment: str = "comparison"
) -> Read:
    """One comparison a review, or its two ratings.

    An answer has another score in each review that it takes part in: scores are comparable inside one review, which is
    what a comparison keeps.

    Args:
        reviews: record; question_id, answer1_id, answer2_id, reviewer_id (String); score: two numbers, for answer1 and
            answer2, larger is better.
        answers: answer_id, question_id, model_id, text (String).
        questions: question_id, text, category (String).
        judgment: "comparison": the answer with the larger score is better, equal scores are a tie;
            "rating": both scores, 1 to 10.

    Returns:
        rows: in the order of `reviews`; answer1 stood first;
        rejects: `score.malformed` (not two numbers), `question.missing`, `answer.missing`, `answer.mismatch` (an
        answer to another question).

    Raises:
        ValueError: a question or an answer occurs twice; no such judgment.
    """
    choose("judgment", judgment, ("comparison", "rating"))
    once("fastchat_reviews", "questions", questions, "question_id")
    once("fastchat_reviews", "answers", answers, "answer_id")
    joined = reviews.join(
        questions.select("question_id", "category", prompt="text", asked=pl.lit(True)),
        on="question_id", how="left", maintain_order="left",
    )  # fmt: skip
    for side, text, model in (("1", "completion", "model"), ("2", "other", "other_model")):
        answer = answers.select(
            pl.col("answer_id").alias(f"answer{side}_id"),
            pl.col("question_id").alias(f"question{side}"),
            pl.col("text").alias(text),
            pl.col("model_id").alias(model),
        )
        joined = joined.join(answer, on=f"answer{side}_id", how="left", maintain_order="left")
    ids = pl.col("question_id")
    scored = (pl.col("score").list.len() == 2) & pl.col("score").list.eval(pl.element().is_not_null()).list.all()
    code = (
        pl.when(pl.col("asked").is_null()).then(pl.lit("question.missing"))
        .when(pl.any_horizontal(pl.col("question1", "question2").is_null())).then(pl.lit("answer.missing"))
        .when((pl.col("question1") != ids) | (pl.col("question2") != ids)).then(pl.lit("answer.mismatch"))
        .when(~scored.fill_null(False)).then(pl.lit("score.malformed"))
    )  # fmt: skip
    coded = joined.with_columns(code=code)
    sound, refused = coded.filter(pl.col("code").is_null()), coded.filter(pl.col("code").is_not_null())
    detail = pl.format("question {}, answers {} and {}", "question_id", "answer1_id", "answer2_id")
    rejects = reasons(refused, "", detail).with_columns(refused["code"])
    shared = ["record", "prompt", "category", pl.col("reviewer_id").alias("annotator")]
    first, second = (pl.col("score").list.get(i, null_on_oob=True) for i in (0, 1))
    if judgment == "comparison":
        value = 0.5 + 0.5 * (first - second).sign()
        rows = sound.select(
            *shared, "completion", "other", "model", "other_model",
            kind=pl.lit("comparison"), value=value, position=pl.lit("first"),
        )  # fmt: skip
        return Read(rows, rejects=rejects)
    kind = pl.lit("rating").alias("kind")
    one = sound.select(*shared, "completion", "model", kind, value=first, position=pl.lit("first"))
    two = sound.select(*shared, kind, completion="other", model="other_model", value=second, position=pl.lit("second"))
    return Read(pl.concat([one, two.select(one.columns)]).sort("record", maintain_order=True), rejects=rejects)
