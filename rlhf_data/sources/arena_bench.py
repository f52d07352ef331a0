"""Arena-Hard's single-answer grading (github.com/lmarena/arena-hard-auto): questions, answers and a judge's scores."""

import polars as pl

from rlhf_data.sources.cells import SCALAR
from rlhf_data.sources.observations import Read, reasons
from rlhf_data.sources.verdicts import once

_CHOICE = pl.Struct({"turns": pl.List(pl.String())})
TABLES = {
    "judgments": {"question_id": SCALAR, "model": pl.String(), "user_prompt": pl.String(), "score": pl.Float64()},
    "answers": {"question_id": SCALAR, "model_id": pl.String(), "choices": pl.List(_CHOICE)},
    "questions": {"question_id": SCALAR, "category": pl.String(), "turns": pl.List(pl.String())},
}
_JUDGED = r"(?s)\[The Start of Assistant's Answer\]\n(.*)\n\[The End of Assistant's Answer\]"


def read(judgments: pl.DataFrame, answers: pl.DataFrame, questions: pl.DataFrame) -> Read:
    """One rating (1 to 10) a judgment, for the answer that the judge saw.

    The judge's prompt quotes what was judged. Answers were made again after some judgments, so the key alone would
    attach scores to texts that nobody scored: the quotation must be the answer, but for white space around it.

    Args:
        judgments: record; question_id, model, user_prompt (String): the judge's prompt, with question and
            answer between marks; score (Float64).
        answers: question_id, model_id (String); choices: the first entry's first turn is the answer.
        questions: question_id, category (String); turns: the first is the question.

    Returns:
        rows: ratings of the answers of the answer file, in the order of `judgments`; a null score is a missing rating;
        rejects: `text.mismatch` (the judged answer or question is another text), `answer.missing`, `question.missing`,
        `question.turns` (several turns: the judged answer is not to the first).

    Raises:
        ValueError: a question, or a model's answer to it, occurs twice.
    """
    once("arena_bench", "questions", questions, "question_id")
    once("arena_bench", "answers", answers, "question_id", "model_id")
    first = pl.col("choices").list.get(0, null_on_oob=True).struct.field("turns").list.get(0, null_on_oob=True)
    known = answers.select("question_id", model="model_id", completion=first, answered=pl.lit(True))
    asked = questions.select(
        "question_id",
        "category",
        prompt=pl.col("turns").list.get(0, null_on_oob=True),
        turns=pl.col("turns").list.len(),
    )
    joined = judgments.join(known, on=["question_id", "model"], how="left", maintain_order="left")
    joined = joined.join(asked, on="question_id", how="left", maintain_order="left")
    quoted = pl.col("user_prompt").str.extract(_JUDGED).str.strip_chars()
    same = (quoted == pl.col("completion").str.strip_chars()).fill_null(False)
    question = pl.col("user_prompt").str.starts_with(pl.concat_str(pl.lit("[Question]\n"), "prompt"))
    code = (
        pl.when(pl.col("turns").is_null()).then(pl.lit("question.missing"))
        .when(pl.col("turns") > 1).then(pl.lit("question.turns"))
        .when(pl.col("answered").is_null()).then(pl.lit("answer.missing"))
        .when(~(same & question.fill_null(False))).then(pl.lit("text.mismatch"))
    )  # fmt: skip
    coded = joined.with_columns(code=code)
    detail = pl.format("question {}, model {}", "question_id", "model")
    rows = coded.filter(pl.col("code").is_null()).select(
        "record", "prompt", "completion", "model", "category", kind=pl.lit("rating"), value="score"
    )
    refused = coded.filter(pl.col("code").is_not_null())
    return Read(rows, rejects=reasons(refused, "", detail).with_columns(refused["code"]))
