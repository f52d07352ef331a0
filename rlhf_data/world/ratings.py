"""The raw file: every answer rated 1 to 5 by two annotators who err, and a few damaged lines."""

import json
from collections.abc import Callable, Iterator
from random import Random

from rlhf_data.world.categories import CATEGORIES

LOWEST, HIGHEST = 1, 5
# How an annotator errs: a draw of these is added to the deserved rating. Ada is mild, Ben is strict and less careful.
ANNOTATORS = {"ada": (-1, 0, 0, 0, 0, 1), "ben": (-2, -1, 0, 0, 0, 1)}
WRITERS = {"right": "large", "near": "medium", "wrong": "small", "rude": "small"}  # the model that wrote an answer

Row = dict[str, str | int | None]

# Each makes of a sound row a line that must end in quarantine.
DAMAGE: dict[str, Callable[[Row], str]] = {
    "rating out of scale": lambda row: line(row | {"rating": 11}),
    "rating is null": lambda row: line(row | {"rating": None}),
    "rating is missing": lambda row: line({name: value for name, value in row.items() if name != "rating"}),
    "rating is not a number": lambda row: line(row | {"rating": "good"}),
    "prompt is empty": lambda row: line(row | {"question": ""}),
    "completion is null": lambda row: line(row | {"answer": None}),
    "line is broken": lambda row: line(row)[:-20],
}
REPEATS = 2  # of each damage


def damaged(prompts: int) -> int:
    """How many damaged lines a world of so many prompts has."""
    return min(prompts, REPEATS * len(DAMAGE))


def lines(prompts: int, *, seed: int) -> Iterator[str]:
    """The lines of the raw file. Each of the first prompts carries one damaged line, until every damage is done."""
    damages = iter([*DAMAGE.values()] * REPEATS)
    for category, question in questions(prompts, seed=seed):
        sound = list(rows(category, question, seed=seed))
        yield from map(line, sound)
        if damage := next(damages, None):
            yield damage(sound[0] | {"id": f"{question} / damaged", "annotator": "guest"})


def questions(prompts: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """`prompts` distinct questions after their categories, which take turns.

    More prompts of the same seed begin with the same questions.
    """
    names = list(CATEGORIES)
    tasks = {name: _distinct_tasks(name, seed=seed) for name in names}
    for index in range(prompts):
        name = names[index % len(names)]
        yield name, f"{CATEGORIES[name].opening} {next(tasks[name])}"


def rows(category: str, question: str, *, seed: int) -> Iterator[Row]:
    """One row per answer and annotator: a function of the question and the seed alone."""
    kind = CATEGORIES[category]
    task = question.removeprefix(f"{kind.opening} ")
    random = Random(f"{seed} {question}")
    for quality, answer in kind.answer(task, random)._asdict().items():
        deserved = LOWEST + round((HIGHEST - LOWEST) * kind.grade(task, answer))
        for annotator, errors in ANNOTATORS.items():
            yield {
                "id": f"{question} / {quality} / {annotator}",
                "category": category,
                "question": question,
                "answer": answer,
                "annotator": annotator,
                "rating": min(max(deserved + random.choice(errors), LOWEST), HIGHEST),
                "model": WRITERS[quality],
            }


def line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _distinct_tasks(category: str, *, seed: int) -> Iterator[str]:
    random = Random(f"{seed} {category}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        task = CATEGORIES[category].pose(random)
        misses = misses + 1 if task in seen else 0
        if not misses:
            seen.add(task)
            yield task
    raise ValueError(f"{category} has no more than {len(seen)} questions: ask for fewer prompts")
