"""The raw file: its rows, its annotators, its damage."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from statistics import mean

import pytest

from rlhf_data.world import CATEGORIES, ratings, verify

PROMPTS = 200
COLUMNS = ["id", "category", "question", "answer", "annotator", "rating", "model"]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(ratings.lines(PROMPTS, seed=0))


@pytest.fixture(scope="module")
def sound(lines) -> list[dict]:
    return [row for row in map(read, lines) if row and row.get("annotator") in ratings.ANNOTATORS]


def read(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def test_every_answer_has_one_row_per_annotator(sound):
    assert len(sound) == PROMPTS * 4 * 2
    assert len({(row["question"], row["answer"], row["annotator"]) for row in sound}) == len(sound)
    assert all(list(row) == COLUMNS and row["rating"] in range(1, 6) for row in sound)


def test_categories_have_equal_shares_and_no_question_comes_twice():
    questions = list(ratings.questions(PROMPTS, seed=0))
    assert Counter(category for category, _ in questions) == dict.fromkeys(CATEGORIES, PROMPTS // 4)
    assert len({question for _, question in questions}) == PROMPTS


def test_ids_are_unique(lines):
    rows = [row for row in map(read, lines) if row]
    repeated = {name: n for name, n in Counter(row["id"] for row in rows).items() if n > 1}
    assert repeated == {}


def test_each_damage_is_done_as_often_as_promised(lines, sound):
    rows = [read(line) for line in lines]
    damaged = [row for row in rows if not (row and row.get("annotator") in ratings.ANNOTATORS)]
    assert len(damaged) == ratings.damaged(PROMPTS) == len(lines) - len(sound) == 14
    found = Counter(
        "line is broken" if row is None
        else "prompt is empty" if not row["question"]
        else "completion is null" if row["answer"] is None
        else "rating is missing" if "rating" not in row
        else {None: "rating is null", 11: "rating out of scale", "good": "rating is not a number"}[row["rating"]]
        for row in damaged
    )  # fmt: skip
    assert found == dict.fromkeys(ratings.DAMAGE, ratings.REPEATS)


def test_a_world_of_few_prompts_has_as_many_damaged_lines():
    assert len(list(ratings.lines(3, seed=0))) == 3 * 4 * 2 + ratings.damaged(3)


def test_annotators_disagree_and_answers_of_a_prompt_tie(sound):
    by_answer, means = defaultdict(dict), defaultdict(list)
    for row in sound:
        by_answer[row["question"], row["answer"]][row["annotator"]] = row["rating"]
    for (question, _), given in by_answer.items():
        means[question].append(mean(given.values()))
    disagree = mean(given["ada"] != given["ben"] for given in by_answer.values())
    tie = mean(len(set(values)) < len(values) for values in means.values())
    assert 0.2 < disagree < 0.8
    assert 0.05 < tie < 0.95


def test_ratings_follow_the_verifier(sound):
    given = defaultdict(list)
    for row in sound:
        deserved = 1 + round(4 * verify([{"role": "user", "content": row["question"]}], row["answer"]))
        given[deserved].append(row["rating"])
    assert sorted(given) == [1, 2, 3, 5]
    assert all(abs(mean(ratings) - deserved) < 0.5 for deserved, ratings in given.items())


def test_a_larger_world_begins_with_the_smaller_one(lines):
    assert list(ratings.lines(2 * PROMPTS, seed=0))[: len(lines)] == lines


def test_another_seed_is_another_world(lines):
    assert set(ratings.questions(PROMPTS, seed=0)) != set(ratings.questions(PROMPTS, seed=1))


def test_more_prompts_than_there_are_questions_is_refused():
    with pytest.raises(ValueError, match="no more than 1280 questions"):
        list(ratings.questions(10_000, seed=0))


def test_lines_depend_neither_on_the_process_nor_on_its_hash_seed_and_need_no_torch(lines):
    program = (
        "import sys; from rlhf_data.world import ratings; "
        f"print(*ratings.lines({PROMPTS}, seed=0), sep='\\n'); assert 'torch' not in sys.modules"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True
        )
        assert done.stdout.splitlines() == lines, done.stderr
