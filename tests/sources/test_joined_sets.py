"""Adapters of real sets on small frames: what they refuse, which the real files hold little of."""

import json

import polars as pl
import pytest

from rlhf_data.sources import arena_bench, cells, fastchat_reviews, finegrained_qa, llamafactory_dpo, mqm, prometheus
from rlhf_data.sources.readers import Raw
from tests.sources.damage import damaged


def frames(module, **records):
    """The tables of an adapter for records as JSON has them."""
    return {name: cells.table(Raw("f", rows, {}), module.TABLES[name]).frame for name, rows in records.items()}


def reasons(frame):
    return frame.select("record", "code").rows()


def judged(question="q", answer="a", *, key="1", model="m", score=7):
    prompt = f"[Question]\n{question}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
    return {"question_id": key, "model": model, "user_prompt": prompt, "score": score}


def arena_tables(*judgments, answers=("a",), turns=("q",)):
    rows = [{"question_id": "1", "model_id": "m", "choices": [{"turns": [text]}]} for text in answers]
    questions = [{"question_id": "1", "category": "c", "turns": list(turns)}]
    return frames(arena_bench, judgments=list(judgments), answers=rows, questions=questions)


def test_a_score_belongs_to_the_text_that_the_judge_saw():
    rows = (
        judged(),
        judged(answer=" a\n"),
        judged(answer="b"),
        judged(question="r"),
        {**judged(), "user_prompt": None},
    )
    read = arena_bench.read(**arena_tables(*rows))
    assert read.rows.select("record", "prompt", "completion", "value").rows() == [
        (0, "q", "a", 7.0),
        (1, "q", "a", 7.0),
    ]
    assert reasons(read.rejects) == [(2, "text.mismatch"), (3, "text.mismatch"), (4, "text.mismatch")]
    assert read.rejects["detail"][0] == "question 1, model m"


def test_a_score_of_nothing_is_refused():
    read = arena_bench.read(**arena_tables(judged(key="2"), judged(model="n")))
    assert reasons(read.rejects) == [(0, "question.missing"), (1, "answer.missing")]
    read = arena_bench.read(**arena_tables(judged(), turns=("q", "r")))
    assert reasons(read.rejects) == [(0, "question.turns")]
    with pytest.raises(ValueError, match="answers: the question_id 1 and model_id m occurs 2 times"):
        arena_bench.read(**arena_tables(judged(), answers=("a", "b")))


def review_tables(*reviews):
    answers = [
        {"answer_id": name, "question_id": key, "model_id": name.upper(), "text": f"text {name}"}
        for name, key in (("a", 1), ("b", 1), ("c", 2))
    ]
    questions = [{"question_id": key, "text": f"q{key}", "category": "generic"} for key in (1, 2)]
    rows = [
        {"question_id": key, "answer1_id": one, "answer2_id": two, "reviewer_id": 3, "score": score}
        for key, one, two, score in reviews
    ]
    return frames(fastchat_reviews, reviews=rows, answers=answers, questions=questions)


def test_a_review_is_a_comparison_or_two_ratings():
    tables = review_tables((1, "a", "b", [9, 8.5]), (1, "a", "b", [7.0, 7.0]), (1, "b", "a", [1, 2]))
    rows = fastchat_reviews.read(**tables).rows
    assert rows["value"].to_list() == [1.0, 0.5, 0.0]
    assert rows.row(0, named=True)["other"] == "text b"
    assert set(rows["annotator"]) == {"3"}
    rated = fastchat_reviews.read(**tables, judgment="rating").rows
    assert rated.select("completion", "value", "position").rows()[:2] == [
        ("text a", 9.0, "first"),
        ("text b", 8.5, "second"),
    ]


def test_a_review_of_other_answers_is_refused():
    scores = [1, 2]
    cases = [
        ((3, "a", "b", scores), "question.missing"),
        ((1, "a", "z", scores), "answer.missing"),
        ((1, "a", "c", scores), "answer.mismatch"),
        ((1, "a", "b", [1]), "score.malformed"),
        ((1, "a", "b", [1, None]), "score.malformed"),
        ((1, "a", "b", None), "score.malformed"),
    ]
    read = fastchat_reviews.read(**review_tables(*(review for review, _ in cases)))
    assert reasons(read.rejects) == list(enumerate(code for _, code in cases))
    assert read.rows.height == 0


def asked(**change):
    answers = {f"prediction {i}": f"answer {i}" for i in range(1, 5)}
    feedback = {"errors": [], "missing-info": []}
    sound = {"question": "q", "passages": [["T", "One.", "Two."], ["U", "Three."]], **answers}
    return {**sound, "preference": [1, 2, 0, 1, 2, 0], "feedback": feedback, **change}


def finegrained(*records, **options):
    return finegrained_qa.read(**frames(finegrained_qa, raw=list(records)), **options)


def test_six_verdicts_are_of_the_pairs_in_order():
    read = finegrained(asked(), asked(preference=[1, 2]), asked(preference=[3, 1, 1, 1, 1, 1]), asked(preference=None))
    assert read.rows.head(6).select("completion", "other", "value").rows() == [
        ("answer 1", "answer 2", 1.0),
        ("answer 1", "answer 3", 0.0),
        ("answer 1", "answer 4", 0.5),
        ("answer 2", "answer 3", 1.0),
        ("answer 2", "answer 4", 0.0),
        ("answer 3", "answer 4", 0.5),
    ]
    assert read.rows.height == 6 + 5
    assert sorted(reasons(read.rejects)) == [
        (1, "preference.malformed"),
        (2, "verdict.unknown"),
        (3, "preference.malformed"),
    ]


@pytest.mark.parametrize(
    ("passages", "shown", "prompt"),
    [
        ([["T", "One.", "Two."], ["U", "Three."]], True, "q\n\nT\nOne. Two.\n\nU\nThree."),
        ([["T", "One.", "Two."]], False, "q"),
        ([], True, "q"),
        (None, True, "q"),
    ],
)
def test_passages_stand_below_the_question(passages, shown, prompt):
    assert finegrained(asked(passages=passages), passages=shown).rows["prompt"][0] == prompt


def test_marked_errors_are_counted_by_kind_and_must_lie_in_the_answer():
    errors = [{"error type": kind, "start": 0, "end": 8} for kind in ("Redundant", "Redundant", "Irrelevant")]
    told = {"errors": errors, "missing-info": [{"start": 1}]}
    strange = {"errors": [{"error type": "Rude", "start": 0, "end": 1}], "missing-info": []}
    beyond = {"errors": [{"error type": "Redundant", "start": 0, "end": 9}], "missing-info": []}
    read = finegrained(asked(feedback=told), asked(feedback=strange), asked(feedback=beyond), judgment="errors")
    counted = dict(read.rows.filter(record=0).select("aspect", "value").rows())
    assert counted == dict.fromkeys(finegrained_qa.ERRORS, 0.0) | {
        "Redundant": -2.0,
        "Irrelevant": -1.0,
        "missing-info": -1.0,
    }
    assert reasons(read.rejects) == [(1, "error.unknown"), (2, "span.out_of_range")]
    assert read.rejects["detail"].to_list() == ["Rude", None]


SECTIONS = """###Task Description:
Rate.

###The instruction to evaluate:
{question}

###Response to evaluate:
{answer}

###Reference Answer (Score 5):
r

###Score Rubrics:
[Is it good?]
Score 1: no

###Feedback: """


def prompted(question="q\n\nq", answer="a\n\na", scores=(5, 4)):
    text = SECTIONS.format(question=question, answer=answer)
    scores = scores if scores is None else list(scores)
    return {"instruction": text, "response_source": "m", "category": "c", "gpt4_score": scores}


def test_one_text_is_taken_apart_at_its_marks():
    twice = prompted(answer="###Response to evaluate:\nx")
    damaged = [twice, prompted(scores=(6, 3)), prompted(scores=()), {**prompted(), "instruction": "q"}]
    read = prometheus.read(**frames(prometheus, raw=[prompted(), *damaged, prompted(scores=None)]))
    assert read.rows.select("record", "prompt", "completion", "value", "annotator").rows() == [
        (0, "q\n\nq", "a\n\na", 5.0, "gpt4-1"),
        (0, "q\n\nq", "a\n\na", 4.0, "gpt4-2"),
        (2, "q\n\nq", "a\n\na", 3.0, "gpt4-2"),
    ]
    assert sorted(reasons(read.rejects)) == [
        (1, "sections.malformed"),
        (2, "rating.out_of_range"),
        (3, "rating.missing"),
        (4, "sections.malformed"),
        (5, "rating.missing"),
    ]


def test_an_empty_answer_between_its_marks_is_empty_and_not_missing():
    read = prometheus.read(**frames(prometheus, raw=[prompted(answer="", scores=(1,))]))
    assert read.rows["completion"].to_list() == [""]


def marked(system, target, category, severity, source="s"):
    place = {"doc": "d", "doc_id": 1, "seg_id": 2, "rater": "r1"}
    return {**place, "system": system, "source": source, "target": target, "category": category, "severity": severity}


def test_the_errors_of_an_output_are_summed_with_their_weights():
    rows = [
        marked("A", "<v>t</v> u", "Accuracy/Mistranslation", "Major"),
        marked("B", "w", "No-error", "No-error"),
        marked("A", "t <v>u</v>", "Fluency/Punctuation", "Minor"),
        marked("A", "t u", "Accuracy/Omission", "Minor", source="<v>s</v>"),
        marked("C", "x", "Non-translation!", "Major"),
        marked("D", "y", "Style/Awkward", "Neutral"),
        marked("D", "y", "Style/Awkward", "Minor"),
        marked("E", "z", "Style/Awkward", "Minor"),
        marked("E", "other", "Style/Awkward", "Minor"),
    ]
    read = mqm.read(**frames(mqm, raw=rows))
    assert read.rows.select("record", "prompt", "completion", "model").rows() == [
        (0, "s", "t u", "A"),
        (1, "s", "w", "B"),
        (4, "s", "x", "C"),
    ]
    assert read.rows["value"].to_list() == pytest.approx([-(5 + 0.1 + 1), 0.0, -25.0])
    assert read.skipped.rows() == [(2, "error.summed", "with record 0"), (3, "error.summed", "with record 0")]
    assert reasons(read.rejects) == [
        (5, "severity.unknown"),
        (6, "severity.unknown"),
        (7, "text.mismatch"),
        (8, "text.mismatch"),
    ]
    assert set(read.rejects["detail"][:2]) == {"the output has an error of severity Neutral"}
    assert mqm.read(**frames(mqm, raw=rows), major=10).rows["value"][0] == pytest.approx(-11.1)


def test_the_rows_of_an_output_may_stand_anywhere_in_the_file():
    rows = [marked(system, "t", "Style/Awkward", "Minor") for system in "ABABBA"]
    read = mqm.read(**frames(mqm, raw=rows))
    assert dict(read.rows.select("model", "value").rows()) == {"A": -3.0, "B": -3.0}


def test_llamafactory_names_the_speakers_its_own_way():
    turns = [{"from": role, "value": text} for role, text in (("system", "s"), ("human", "h"))]
    record = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    rows = llamafactory_dpo.read(**frames(llamafactory_dpo, raw=[record])).rows
    assert [message["role"] for message in rows["prompt"][0]] == ["system", "user"]
    assert rows.select("completion", "other", "value").rows() == [("a", "b", 1.0)]


def test_the_scores_of_a_file_without_reviews_are_none():
    read = fastchat_reviews.read(**review_tables())
    assert (read.rows.height, read.rejects.height) == (0, 0)
    assert read.rows.schema["value"] == pl.Float64


ONE = {"1": ("1", "q", "a"), "2": ("2", "r", "b")}
SOUND = {
    "arena_bench": {
        "judgments": [judged(question, answer, key=key) for key, question, answer in ONE.values()],
        "answers": [
            {"question_id": key, "model_id": "m", "choices": [{"turns": [text]}]} for key, _, text in ONE.values()
        ],
        "questions": [{"question_id": key, "category": "c", "turns": [text]} for key, text, _ in ONE.values()],
    },
    "fastchat_reviews": {
        "reviews": [
            {"question_id": 1, "answer1_id": "a", "answer2_id": "b", "reviewer_id": 3, "score": [score, 5]}
            for score in (9, 8.5)
        ],
        "answers": [{"answer_id": name, "question_id": 1, "model_id": "m", "text": name} for name in "ab"],
        "questions": [{"question_id": 1, "text": "q", "category": "c"}],
    },
    "finegrained_qa": {"raw": [asked()]},
    "llamafactory_dpo": {
        "raw": [
            {
                "conversations": [{"from": "human", "value": "h"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            }
        ]
    },
    "mqm": {"raw": [marked("A", "<v>t</v> u", "Accuracy/Mistranslation", "Major")]},
    "prometheus": {"raw": [prompted()]},
}


@pytest.mark.parametrize("name", SOUND)
def test_no_damage_to_a_part_of_a_record_loses_the_record_or_stops_the_read(name, tmp_path, run):
    main, *others = SOUND[name]
    sound = SOUND[name][main]
    broken = list(damaged(sound[0]))
    written = {main: [*sound, *broken, *(sound * len(broken))], **{table: SOUND[name][table] for table in others}}
    for table, records in written.items():
        (tmp_path / f"{table}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = run({table: [str(tmp_path / f"{table}.jsonl")] for table in written}, adapter=name)
    assert found.records.rows_in == len(written[main])
    assert found.quarantine.height > 0
