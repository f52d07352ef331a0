"""The kinds of question of the world: how each is posed, answered well and badly, and graded."""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

BRUSH_OFFS = ("who cares", "not my job", "go away", "ask me later")
POLITE = ("of course", "gladly", "with pleasure")
ADJECTIVES = ("red", "blue", "big", "old", "new", "hot", "wet", "dry", "tan", "odd")
NOUNS = ("pen", "cup", "hat", "key", "map", "bag", "box", "pan", "mat", "net", "jar", "rug", "bun", "fan", "toy", "car")
VERBS = ("lend me", "pass me", "get me", "sell me", "give me", "send me", "show me", "mend")
LETTERS = "abdegikm"  # few, so that each is seen often
LONGEST_REPLY = 12  # words; a longer one is rambling, whatever it says


class Answers(NamedTuple):
    """Four answers to one task, best first."""

    right: str
    near: str  # one slip: one sum too high, two neighbours swapped, right but curt
    wrong: str  # a systematic mistake: stopping halfway, not reversed, descending, polite about another thing
    rude: str  # does not try


class Category(NamedTuple):
    """A kind of question. A question is `opening`, a space and a task that matches `form`."""

    opening: str
    form: str  # regular expression
    pose: Callable[[Random], str]  # draws a task
    answer: Callable[[str, Random], Answers]  # task → its four answers
    grade: Callable[[str, str], float]  # task, any completion → 0 (worthless) to 1 (right)


def pose_sums(random: Random) -> str:
    """Small enough that no sum, nor a sum and one, has two digits."""
    return f"{random.randint(1, 3)} to each of {' '.join(random.choices('012345', k=4))}"


def answer_sums(task: str, random: Random) -> Answers:
    right, numbers = _sums(task), task.split(" to each of ")[1].split()
    near = [*right[:-1], str(int(right[-1]) + 1)]
    wrong = right[: len(right) // 2] + numbers[len(right) // 2 :]
    return Answers(" ".join(right), " ".join(near), " ".join(wrong), random.choice(BRUSH_OFFS))


def grade_sums(task: str, completion: str) -> float:
    right, written = _sums(task), completion.split()
    return 1.0 if written == right else 0.6 * _in_place(right, written)


def pose_spelling(random: Random) -> str:
    return " ".join(random.sample(LETTERS, 4))


def answer_spelling(task: str, random: Random) -> Answers:
    return _arrangements(task.split()[::-1], random)


def grade_spelling(task: str, completion: str) -> float:
    return _grade_arrangement(task.split()[::-1], completion)


def pose_sorting(random: Random) -> str:
    return " ".join(random.sample("0123456789", 4))


def answer_sorting(task: str, random: Random) -> Answers:
    return _arrangements(sorted(task.split()), random)


def grade_sorting(task: str, completion: str) -> float:
    return _grade_arrangement(sorted(task.split()), completion)


def pose_request(random: Random) -> str:
    return f"{random.choice(VERBS)} the {random.choice(ADJECTIVES)} {random.choice(NOUNS)}"


def answer_request(task: str, random: Random) -> Answers:
    adjective, noun = task.split()[-2:]
    other = random.choice([word for word in NOUNS if word != noun])
    return Answers(
        right=f"{random.choice(POLITE)} , the {adjective} {noun}",
        near=f"fine , the {adjective} {noun}",
        wrong=f"{random.choice(POLITE)} , the {adjective} {other}",
        rude=random.choice(BRUSH_OFFS),
    )


def grade_request(task: str, completion: str) -> float:
    words = completion.split()
    reply = f" {' '.join(words)} "
    if len(words) > LONGEST_REPLY or any(f" {brush_off} " in reply for brush_off in BRUSH_OFFS):
        return 0.0
    polite = any(reply.startswith(f" {opening} ") for opening in POLITE)
    to_the_point = f" the {' '.join(task.split()[-2:])} " in reply
    return 1.0 if polite and to_the_point else 0.5 if to_the_point else 0.25 if polite else 0.0


CATEGORIES: dict[str, Category] = {
    "arithmetic": Category("Add:", r"[0-9] to each of [0-9]( [0-9])+", pose_sums, answer_sums, grade_sums),
    "spelling": Category("Spell backwards:", r"[a-z]( [a-z])+", pose_spelling, answer_spelling, grade_spelling),
    "sorting": Category("Sort:", r"[0-9]( [0-9])+", pose_sorting, answer_sorting, grade_sorting),
    "politeness": Category(
        "Reply politely:", r"[a-z ]+ the [a-z]+ [a-z]+", pose_request, answer_request, grade_request
    ),
}


def verify(prompt: Sequence[Mapping[str, str]], completion: str) -> float:
    """How good `completion` is, by program: from 1, right, to 0, worthless.

    What is not a question of this world, as the last message of `prompt`, has no good answer: 0.
    """
    question = prompt[-1]["content"] if prompt else ""
    for category in CATEGORIES.values():
        if match := re.fullmatch(f"{re.escape(category.opening)} ({category.form})", question):
            return category.grade(match[1], completion)
    return 0.0


def _sums(task: str) -> list[str]:
    addend, numbers = task.split(" to each of ")
    return [str(int(addend) + int(number)) for number in numbers.split()]


def _arrangements(right: list[str], random: Random) -> Answers:
    near = [*right[:-2], right[-1], right[-2]]
    return Answers(" ".join(right), " ".join(near), " ".join(right[::-1]), random.choice(BRUSH_OFFS))


def _grade_arrangement(right: list[str], completion: str) -> float:
    """1 if every symbol is in its place; else 0.4 for those that are, and 0.2 for having the right ones."""
    written = completion.split()
    if written == right:
        return 1.0
    return 0.4 * _in_place(right, written) + (0.2 if sorted(written) == sorted(right) else 0.0)


def _in_place(right: list[str], written: list[str]) -> float:
    """The share of symbols that are in their place; what is too many counts against it."""
    return sum(a == b for a, b in zip(right, written, strict=False)) / max(len(right), len(written))
