"""Made-up records in the form of data sets that are not at hand: `python -m rlhf_data.sources.samples NAME FILE [N]`.

A form is what a record is made of, and the oddities of such data: ties, missing values, damage. Oddity number k stands
in every PERIOD-th record, from record 2k + 1 on, so that whoever reads a file knows how many of each are in it.
"""

import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_data.sources import helpsteer, ultrafeedback
from rlhf_data.sources.cells import tokens
from rlhf_data.words import hint

PERIOD = 20  # records from one oddity of a kind to the next
_TOPICS = ("tides", "sourdough", "binary search", "the French Revolution", "photosynthesis", "chess openings")
_TASKS = ("Explain", "Summarise what matters about", "Give three facts about", "Write a haiku about")
_MODELS = ("falcon-40b-instruct", "gpt-4", "starchat", "wizardlm-7b", "alpaca-7b", "llama-2-7b", "mistral-7b")


class Form(NamedTuple):
    """What records of a data set look like.

    Attributes:
        record: a template: functions of (random numbers, number of the record) in it are called, all else is as it is.
        odd: oddities, each as values by the path in the record that they are put at.
    """

    record: Any
    odd: tuple[Mapping[str, Any], ...]


def make(name: str, path: Path, n: int, seed: int = 0) -> Path:
    """Write `n` records of a data set's form as JSON lines.

    Raises:
        ValueError: no such form.
    """
    if name not in FORMS:
        raise ValueError(f"no form named {name!r}{hint(name, FORMS, ', ')}; known forms: {', '.join(FORMS)}")
    rng = random.Random(seed)
    lines = [json.dumps(_record(FORMS[name], rng, index), ensure_ascii=False) for index in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _record(form: Form, rng: random.Random, index: int) -> Any:
    record = _drawn(form.record, rng, index)
    kind, odd = divmod(index % PERIOD, 2)
    for path, value in form.odd[kind].items() if odd and kind < len(form.odd) else ():
        *before, last = tokens(path)
        part = record
        for step in before:
            part = part[step]
        part[last] = value
    return record


def _drawn(template: Any, rng: random.Random, index: int) -> Any:
    if callable(template):
        return _drawn(template(rng, index), rng, index)
    if isinstance(template, dict):
        return {key: _drawn(value, rng, index) for key, value in template.items()}
    return [_drawn(value, rng, index) for value in template] if isinstance(template, list) else template


def _question(_: random.Random, index: int) -> str:
    """The same for a record wherever it stands in it."""
    return f"{_TASKS[index % len(_TASKS)]} {_TOPICS[index % len(_TOPICS)]} (no. {index})."


def _answer(rng: random.Random, index: int) -> str:
    words = rng.choices(("it", "is", "known", "that", "some", "are", "café"), k=rng.randint(4, 30))
    return f"On {_TOPICS[index % len(_TOPICS)]}: {' '.join(words)} {rng.randrange(10**6)}."


def _one_of(*values: Any) -> Callable[[random.Random, int], Any]:
    return lambda rng, _: rng.choice(values)


def _number(low: int, high: int) -> Callable[[random.Random, int], int]:
    return lambda rng, _: rng.randint(low, high)


def _turn(role: str, content: Any, names: tuple[str, str] = ("role", "content")) -> dict[str, Any]:
    return dict(zip(names, (role, content), strict=True))


def _said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """A conversation in ShareGPT's form."""
    return [_turn(role, content, ("from", "value")) for role, content in turns]


_model = _one_of(*_MODELS)
_ASKED = [_turn("user", _question)]
_REPLIED = [*_ASKED, _turn("assistant", _answer)]
_LONGER = [_turn(role, text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]


def _as_list(text: Callable[[random.Random, int], str]) -> Callable[[random.Random, int], str]:
    return lambda rng, index: json.dumps([text(rng, index)])


def _webgpt(rng: random.Random, _: int) -> dict[str, Any]:
    score = rng.choice((-1.0, -0.5, 0.25, 1.0))
    return {
        "question": {"dataset": _one_of("eli5", "triviaqa"), "id": "q", "full_text": _question},
        "quotes_0": {"title": ["A page"], "extract": ["An extract"]},
        "answer_0": _answer,
        "score_0": score,
        "quotes_1": {"title": [], "extract": []},
        "answer_1": _answer,
        "score_1": -score,
    }


def _arena_outcome(rng: random.Random, _: int) -> dict[str, Any]:
    first = rng.randint(0, 1)
    return {
        "id": _number(1, 10**9),
        "model_a": _model,
        "model_b": _model,
        "prompt": _as_list(_question),
        "response_a": _as_list(_answer),
        "response_b": _as_list(_answer),
        "winner_model_a": first,
        "winner_model_b": 1 - first,
        "winner_tie": 0,
    }


def _ultrafeedback(rng: random.Random, _: int) -> dict[str, Any]:
    models = rng.sample(_MODELS, 4)
    return {
        "source": _one_of("sharegpt", "evol_instruct", "flan_v2_cot"),
        "instruction": _question,
        "models": models,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
        "completions": [_rated(model, rng) for model in models],
    }


def _rated(model: str, rng: random.Random) -> dict[str, Any]:
    """An answer in UltraFeedback's form: ratings are texts, every answer has a system prompt."""
    quality, principle = rng.randint(1, 5), rng.choice(("helpfulness", "honesty", "truthfulness"))
    rating = _one_of(*(str(min(5, max(1, quality + off))) for off in (-1, 0, 0, 1)))
    return {
        "model": model,
        "principle": principle,
        "custom_system_prompt": f"As an AI assistant, put {principle} first.",
        "response": _answer,
        "annotations": {aspect: {"Rating": rating, "Rationale": "Made up."} for aspect in ultrafeedback.ASPECTS},
    }


FORMS: dict[str, Form] = {
    "alpaca": Form(
        {"instruction": _question, "input": "", "output": _answer},
        ({"input": "Some text."}, {"output": None}, {"instruction": ""}),
    ),
    "arena": Form(
        {
            "question_id": _number(1, 10**9),
            "model_a": _model,
            "model_b": _model,
            "winner": _one_of("model_a", "model_b"),
            "judge": _one_of("arena_user_1", "arena_user_2"),
            "conversation_a": _REPLIED,
            "conversation_b": _REPLIED,
            "turn": 1,
            "anony": True,
            "language": _one_of("English", "German"),
        },
        (
            {"winner": "tie"},
            {"winner": "tie (bothbad)"},
            {"winner": "model_c"},
            {"winner": None},
            {"conversation_a": _LONGER, "conversation_b": _LONGER},
            {"conversation_b[0].content": "Something else."},
            {"conversation_a": []},
        ),
    ),
    "arena_human_preference": Form(
        _arena_outcome,
        (
            {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
            {"winner_model_a": 1, "winner_model_b": 1},
            {"winner_tie": None},
            {"prompt": "[oops"},
            dict.fromkeys(("prompt", "response_a", "response_b"), '["x", "y"]'),
            {"response_a": "[null]"},
            {"response_b": '["\\ud83d"]'},
        ),
    ),
    "beavertails": Form(
        {
            "prompt": _question,
            "response": _answer,
            "category": {"animal_abuse": False},
            "is_safe": _one_of(True, False),
        },
        ({"is_safe": None}, {"response": None}, {"is_safe": "yes"}),
    ),
    "dolly": Form(
        {"instruction": _question, "context": "", "response": _answer, "category": _one_of("open_qa", "closed_qa")},
        ({"context": "Some text."}, {"response": None}),
    ),
    "guanaco": Form(
        {"text": lambda rng, index: f"### Human: {_question(rng, index)}### Assistant: {_answer(rng, index)}"},
        (
            {"text": "### Human: a### Assistant: b### Human: c### Assistant: d"},
            {"text": "### Human: a### Assistant: e### Human: thanks"},
            {"text": "### Human: a"},
            {"text": "a: b"},
            {"text": None},
        ),
    ),
    "helpsteer": Form(
        # Two answers to each prompt stand one below the other.
        {
            "prompt": lambda rng, index: _question(rng, index // 2),
            "response": _answer,
            **dict.fromkeys(helpsteer.ASPECTS, _number(0, 4)),
        },
        (
            {"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc"},
            {"helpfulness": 7},
            {"coherence": None},
            {"verbosity": "2"},
        ),
    ),
    "helpsteer2_preference": Form(
        {
            "prompt": _question,
            "response_1": _answer,
            "response_2": _answer,
            "preference_strength": _one_of(-3, -2, -1, 1, 2, 3),
            "preference_statement": "Made up.",
        },
        ({"preference_strength": 0}, {"preference_strength": 9}, {"preference_strength": None}, {"response_2": None}),
    ),
    "helpsteer3": Form(
        {
            "domain": _one_of("general", "code"),
            "language": "english",
            "context": _ASKED,
            "response1": _answer,
            "response2": _answer,
            "overall_preference": _one_of(-3, -2, -1, 1, 2, 3),
            "individual_preference": [{"score": _one_of(-2, -1, 1, 2), "reasoning": "Made up."}] * 3,
        },
        (
            {"overall_preference": 0, "individual_preference[1].score": 0},
            {"overall_preference": -100},
            {"individual_preference": []},
            {"context": _LONGER},
        ),
    ),
    "kto": Form(
        {"prompt": _ASKED, "completion": [_turn("assistant", _answer)], "label": _one_of(True, False)},
        ({"label": None}, {"label": "true"}, {"completion[0].role": "user"}, {"prompt": []}),
    ),
    "nectar": Form(
        {
            "prompt": lambda rng, index: f"\n\nHuman: {_question(rng, index)}\n\nAssistant: ",
            "answers": [{"answer": _answer, "model": model, "rank": i} for i, model in enumerate(_MODELS, 1)],
            "turns": 1,
            "num_responses": 7,
            "source": ["sharegpt"],
            "good_natured": True,
        },
        (
            {"answers[1].rank": 1},
            {"answers[6].rank": None},
            {"prompt": "Human: hello"},
            {"answers": []},
            {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "},
        ),
    ),
    "orca_dpo": Form(
        {"system": "You are an AI assistant.", "question": _question, "chosen": _answer, "rejected": _answer},
        ({"system": ""}, {"rejected": None}, {"chosen": "Yes.", "rejected": "Yes."}),
    ),
    "pku_safe": Form(
        {
            "prompt": _question,
            "response_0": _answer,
            "response_1": _answer,
            "is_response_0_safe": _one_of(True, False),
            "is_response_1_safe": _one_of(True, False),
            "better_response_id": _one_of(0, 1),
            "safer_response_id": _one_of(0, 1),
        },
        (
            {"better_response_id": 2},
            {"safer_response_id": None},
            {"is_response_0_safe": None},
            {"response_0": "Yes.", "response_1": "Yes."},
        ),
    ),
    "sharegpt": Form(
        {"id": _number(1, 10**9), "conversations": _said(("human", _question), ("gpt", _answer))},
        (
            {"conversations": _said(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))},
            {"conversations": _said(("human", "a"), ("gpt", "e"), ("human", "thanks"))},
            {"conversations": _said(("gpt", "hello"))},
            {"conversations": _said(("human", "a"), ("tool", "x"))},
            {"conversations": []},
            {"conversations": None},
        ),
    ),
    "shp": Form(
        {
            "post_id": _number(1, 10**9),
            "domain": _one_of("askculinary_train", "askphysics_test"),
            "upvote_ratio": 0.98,
            "history": _question,
            "score_A": _number(1, 50),
            "score_B": _number(1, 50),
            "human_ref_A": _answer,
            "human_ref_B": _answer,
            "labels": _one_of(0, 1),
        },
        ({"labels": 2}, {"labels": None}, {"human_ref_B": None}, {"human_ref_A": "Yes.", "human_ref_B": "Yes."}),
    ),
    "stack_exchange": Form(
        {
            "qid": _number(1, 10**9),
            "question": lambda rng, index: f"<p>{_question(rng, index)}</p>",
            "answers": [{"answer_id": i, "text": _answer, "pm_score": i, "selected": i == 3} for i in range(4)],
        },
        (
            {"answers[1].pm_score": 0},
            {"answers[0].pm_score": None},
            {"answers": []},
            {"answers[3].text": None},
        ),
    ),
    "summarize_feedback": Form(
        {
            "info": {"id": "t3_x", "post": _question, "title": "A title", "subreddit": "AskReddit", "article": None},
            "summaries": [{"text": _answer, "policy": policy, "note": None} for policy in ("sup1", "ref")],
            "choice": _one_of(0, 1),
            "worker": _one_of("w1", "w2", "w3"),
            "split": "train",
            "extra": {"confidence": 5},
        },
        (
            {"choice": 3},
            {"choice": None},
            {"summaries": [{"text": "One.", "policy": "sup1"}]},
            {"info": {"post": None, "article": "News."}},
            {"info": {"post": " ", "title": "A title"}},
        ),
    ),
    "ultrafeedback": Form(
        _ultrafeedback,
        (
            {"completions[1].annotations.honesty.Rating": "N/A"},
            {"completions[2].annotations.helpfulness.Rating": None},
            {"completions[3].annotations.truthfulness": None},
        ),
    ),
    "ultrafeedback_binarized": Form(
        {
            "prompt": _question,
            "chosen": _REPLIED,
            "rejected": _REPLIED,
            "score_chosen": _number(6, 10),
            "score_rejected": _number(1, 5),
        },
        (
            {"score_chosen": 5.0, "score_rejected": 5.0},
            {"score_chosen": 2.0, "score_rejected": 9.0},
            {"score_chosen": None},
            {"rejected[0].content": "Something else."},
        ),
    ),
    "webgpt": Form(
        _webgpt,
        (
            {"score_0": 0.0, "score_1": 0.0},
            {"score_0": 0.5, "score_1": 0.5},
            {"score_0": None},
            {"question.full_text": None},
        ),
    ),
}


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: python -m rlhf_data.sources.samples NAME FILE [N]; NAME is one of {', '.join(FORMS)}")
    try:
        print(make(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 200))
    except ValueError as error:
        sys.exit(str(error))
