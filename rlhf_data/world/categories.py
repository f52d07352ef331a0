"""The kinds of question of the world: how each is posed, answered well and badly, and graded."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

BRUSH_OFFS = ("who cares", "not my job", "go away", "ask me later")
POLITE = ("of course", "gladly", "with pleasure")
ADJECTIVES = ("red", "blue", "big", "old", "new", "hot", "wet", "dry", "tan", "odd")
NOUNS = ("pen", "cup", "hat", "key", "map", "bag", "box", "pan", "mat", "net", "jar", "rug", "bun", "fan", "toy", "car")
VERBS = ("lend me", "pass me", "get me", "sell me", "give me", "send me", "show me", "mend")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST_REPLY = 12  # words; a longer one is rambling, whatever it says


class Answers(NamedTuple):
    """Four answers to one task, best first."""

    right: str
    near: str  # one slip: off by one, two neighbours swapped, right but curt
    wrong: str  # a systematic mistake: copied, sorted the other way round, polite about another thing
    rude: str  # does not try


class Category(NamedTuple):
    """A kind of question. A question is `opening`, a space and a task."""

    opening: str
    pose: Callable[[Random], str]  # draws a task
    answer: Callable[[str, Random], Answers]  # task → its four answers
    grade: Callable[[str, str], float]  # task, any completion → 0 (worthless) to 1 (right)


def pose_sum(random: Random) -> str:
    first, second = random.randint(10, 49), random.randint(10, 49)
    return f"{_digits(first)} + {_digits(second)}"


def answer_sum(task: str, random: Random) -> Answers:
    total = _sum(task)
    return Answers(
        right=_digits(total),
        near=_digits(total + random.choice((-1, 1))),
        wrong=_digits(total + random.choice((-10, 10))),
        rude=random.choice(BRUSH_OFFS),
    )


def grade_sum(task: str, completion: str) -> float:
    written = completion.replace(" ", "")
    if not (written.isascii() and written.isdigit() and len(written) <= 3):
        return 0.0
    error = abs(int(written) - _sum(task))
    return 1.0 if error == 0 else 0.5 if error == 1 else 0.25 if error <= 10 else 0.0


def pose_spelling(random: Random) -> str:
    return " ".join(random.sample(LETTERS, random.choice((4, 5))))


def answer_spelling(task: str, random: Random) -> Answers:
    right = task.split()[::-1]
    wrong = random.choice((right[::-1], sorted(right)))
    return _arrangements(right, mistakes=(wrong, right[::-1]), random=random)


def grade_spelling(task: str, completion: str) -> float:
    return _grade_arrangement(task.split()[::-1], completion)


def pose_sorting(random: Random) -> str:
    digits = random.sample("0123456789", random.choice((4, 5)))
    while digits == sorted(digits):
        random.shuffle(digits)
    return " ".join(digits)


def answer_sorting(task: str, random: Random) -> Answers:
    right = sorted(task.split())
    wrong = random.choice((task.split(), right[::-1]))
    return _arrangements(right, mistakes=(wrong, right[::-1]), random=random)


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
    "arithmetic": Category("Add:", pose_sum, answer_sum, grade_sum),
    "spelling": Category("Spell backwards:", pose_spelling, answer_spelling, grade_spelling),
    "sorting": Category("Sort:", pose_sorting, answer_sorting, grade_sorting),
    "politeness": Category("Reply politely:", pose_request, answer_request, grade_request),
}


def _digits(number: int) -> str:
    return " ".join(str(number))


def _sum(task: str) -> int:
    first, second = task.split("+")
    return int(first.replace(" ", "")) + int(second.replace(" ", ""))


def _arrangements(right: list[str], *, mistakes: tuple[list[str], ...], random: Random) -> Answers:
    near = [*right[:-2], right[-1], right[-2]]
    wrong = next(mistake for mistake in mistakes if mistake not in (right, near))
    return Answers(" ".join(right), " ".join(near), " ".join(wrong), random.choice(BRUSH_OFFS))


def _grade_arrangement(right: list[str], completion: str) -> float:
    """1 if every symbol is in its place; else at most 0.6, by the share that is, with 0.2 for the right symbols."""
    written = completion.split()
    if written == right:
        return 1.0
    in_place = sum(a == b for a, b in zip(written, right, strict=False)) / max(len(right), len(written))
    return 0.4 * in_place + (0.2 if sorted(written) == sorted(right) else 0.0)
