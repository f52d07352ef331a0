"""What `verify` thinks of answers, right, wrong and odd."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.world import CATEGORIES, verify
from rlhf_data.world.categories import BRUSH_OFFS


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


SUM, SPELL, SORT, REQUEST = (
    "Add: 2 to each of 3 1 5 4",
    "Spell backwards: k a b e",
    "Sort: 7 2 9 4",
    "Reply politely: pass me the red pen",
)


@pytest.mark.parametrize(
    ("question", "completion", "reward"),
    [
        (SUM, "5 3 7 6", 1.0),
        (SUM, "5 3 7 7", 0.6 * 3 / 4),  # one too high
        (SUM, "5 3 5 4", 0.6 * 2 / 4),  # stopped halfway
        (SUM, "3 1 5 4", 0.0),  # nothing added
        (SUM, "5 3 7 6 5 3 7 6", 0.6 * 4 / 8),
        (SUM, "5376", 0.0),
        (SPELL, "e b a k", 1.0),
        (SPELL, " e b  a k\n", 1.0),
        (SPELL, "e b k a", 0.2 + 0.4 * 2 / 4),  # two swapped
        (SPELL, "k a b e", 0.2),  # not reversed
        (SPELL, "e b a", 0.4 * 3 / 4),  # one lost
        (SPELL, "e b a k k k k k", 0.4 * 4 / 8),
        (SORT, "2 4 7 9", 1.0),
        (SORT, "2 4 9 7", 0.4),
        (SORT, "9 7 4 2", 0.2),  # descending
        (SORT, "1 3 5 8", 0.0),
        (REQUEST, "gladly , the red pen", 1.0),
        (REQUEST, "of course , the red pen", 1.0),
        (REQUEST, "fine , the red pen", 0.5),  # curt
        (REQUEST, "gladly , the red cup", 0.25),  # about another thing
        (REQUEST, "gladly , the red penguin", 0.25),
        (REQUEST, "gladly , the red pen who cares", 0.0),
        (REQUEST, "gladly , " + "the red pen " * 9, 0.0),  # rambling
    ],
)
def test_a_hand_case_gets_its_grade(question, completion, reward):
    assert verify(ask(question), completion) == pytest.approx(reward)


@pytest.mark.parametrize("question", [SUM, SPELL, SORT, REQUEST])
@pytest.mark.parametrize("completion", ["", " ", "\n", "banana", "😀", "\x00", *BRUSH_OFFS])
def test_junk_and_brush_offs_are_worth_nothing(question, completion):
    assert verify(ask(question), completion) == 0.0


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        ask(""),
        ask("Add:"),
        ask("Add: "),
        ask("Add: two to each of 3 1"),
        ask("Add: ² to each of 3 1"),
        ask("Add: 2 to each of"),
        ask("Hello"),
    ],
)
def test_what_is_no_question_of_the_world_is_worth_nothing(prompt):
    assert verify(prompt, "5 5") == 0.0


def test_the_last_message_is_the_question():
    turns = [*ask(SORT), {"role": "assistant", "content": "2 4 7 9"}, *ask(SUM)]
    assert verify(turns, "5 3 7 6") == 1.0
    assert verify([{"role": "system", "content": "Be brief."}, *ask(SUM)], "5 3 7 6") == 1.0


openings = st.sampled_from(["", *(f"{category.opening} " for category in CATEGORIES.values())])
tasks = st.text() | st.text("0123456789 ab") | st.sampled_from([q.split(": ")[1] for q in (SUM, SPELL, SORT, REQUEST)])


@given(openings, tasks, st.text() | st.text("0123456789 abk,"))
def test_no_text_makes_it_raise_or_leave_its_range(opening, task, completion):
    assert 0.0 <= verify(ask(opening + task), completion) <= 1.0


@pytest.mark.parametrize("name", CATEGORIES)
@given(seed=st.integers())
def test_in_every_category_better_answers_have_higher_grades(name, seed):
    category, random = CATEGORIES[name], Random(seed)
    task = category.pose(random)
    answers = category.answer(task, random)
    rewards = [verify(ask(f"{category.opening} {task}"), answer) for answer in answers]
    assert rewards[0] == 1.0
    assert rewards[-1] == 0.0
    assert all(better > worse for better, worse in pairwise(rewards))
