"""The raw file: every answer rated 1 to 5 by two annotators who err, and a few damaged lines."""

import json
from collections.abc import Callable, Iterator
from random import Random

from rlhf_data.world.categories import CATEGORIES

# How an annotator errs: a draw is added to the true rating, and the sum is clipped to the scale.
ANNOTATORS = {"ada": (-1, 0, 0, 0, 0, 1), "ben": (-2, -1, 0, 0, 0, 1)}
SCALE = (1, 5)
WRITERS = {"right": "large", "near": "medium", "wrong": "small", "rude": "small"}  # who wrote an answer of a quality

Row = dict[str, str | int | None]

# Each spoils a sound row; the line it becomes must end in quarantine.
DAMAGE: dict[str, Callable[[Row], str]] = {
    "rating out of scale": lambda row: _line(row | {"rating": 11}),
    "rating is null": lambda row: _line(row | {"rating": None}),
    "rating is missing": lambda row: _line({name: row[name] for name in row if name != "rating"}),
    "rating is not a number": lambda row: _line(row | {"rating": "good"}),
    "prompt is empty": lambda row: _line(row | {"question": ""}),
    "completion is null": lambda row: _line(row | {"answer": None}),
    "line is broken": lambda row: _line(row)[:-20],
}
REPEATS = 2


def questions(prompts: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """`prompts` distinct questions with their categories, the categories taking turns.

    More prompts of the same seed begin with the same questions.
    """
    tasks = {name: _tasks(name, seed=seed) for name in CATEGORIES}
    names = list(CATEGORIES)
    for index in range(prompts):
        name = names[index % len(names)]
        yield name, f"{CATEGORIES[name].opening} {next(tasks[name])}"


def rows(category: str, question: str, *, seed: int) -> Iterator[Row]:
    """One row per answer and annotator; a function of the question and the seed alone."""
    kind = CATEGORIES[category]
    random = Random(f"{seed} {question}")
    task = question.removeprefix(f"{kind.opening} ")
    for quality, answer in kind.answer(task, random)._asdict().items():
        deserved = 1 + round(4 * kind.grade(task, answer))
        for annotator, errors in ANNOTATORS.items():
            yield {
                "id": f"{question} / {quality} / {annotator}",
                "category": category,
                "question": question,
                "answer": answer,
                "annotator": annotator,
                "rating": min(max(deserved + random.choice(errors), SCALE[0]), SCALE[1]),
                "model": WRITERS[quality],
            }


def lines(prompts: int, *, seed: int) -> Iterator[str]:
    """The lines of the raw file; each of the first prompts carries one damaged line, until every damage was done."""
    damages = iter([*DAMAGE.values()] * REPEATS)
    for category, question in questions(prompts, seed=seed):
        rated = list(rows(category, question, seed=seed))
        yield from map(_line, rated)
        if damage := next(damages, None):
            yield damage(rated[0] | {"id": f"{question} / damaged", "annotator": "guest"})


def _tasks(category: str, *, seed: int) -> Iterator[str]:
    random, seen = Random(f"{seed} {category}"), set[str]()
    misses = 0
    while misses < 10_000:
        task = CATEGORIES[category].pose(random)
        misses = misses + 1 if task in seen else 0
        if not misses:
            seen.add(task)
            yield task
    raise ValueError(f"{category} has no more than {len(seen)} questions: ask for fewer prompts")


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)
