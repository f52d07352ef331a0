"""The folder of a world: made whole or not at all, and left alone where it is already as asked."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_data.world import ratings
from rlhf_data.world.model import save_model

PROMPTS = 1600
MODEL_VERSION = 1  # raise it with every change of model.py, so that older folders are made anew


class World(NamedTuple):
    """What a folder holds."""

    ratings: Path
    model: Path
    prompts: int
    lines: int  # of the raw file, the damaged ones among them
    damaged: int  # lines that must end in quarantine
    made: bool  # False where the folder was already so


def generate(folder: str | Path, *, prompts: int = PROMPTS, seed: int = 0) -> World:
    """Make the world in `folder`: raw/ratings.jsonl, and model/ with the untrained policy.

    Equal arguments give equal bytes; a world of more prompts has all the prompts, answers and ratings of a smaller one.
    Other files in the folder stay.

    Args:
        folder: made if need be.
        prompts: distinct questions, over all categories; a category has 1280 or more.
        seed: of questions, answers, annotators' errors and the model's weights.

    Raises:
        ValueError: fewer than 1 prompt, or more than a category has questions.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}: a world needs at least 1")
    folder = Path(folder)
    lines = list(ratings.lines(prompts, seed=seed))
    text = "".join(f"{line}\n" for line in lines).encode()
    about = {"prompts": prompts, "seed": seed, "ratings": _digest(text), "model": MODEL_VERSION}
    world = World(
        ratings=folder / "raw" / "ratings.jsonl",
        model=folder / "model",
        prompts=prompts,
        lines=len(lines),
        damaged=ratings.damaged(prompts),
        made=not _holds(folder, about),
    )
    if world.made:
        marker = folder / "world.json"
        marker.unlink(missing_ok=True)  # written again last: without it the folder is not taken for a world
        _write(world.ratings, text)
        _write_model(world.model, prompts=prompts, seed=seed)
        _write(marker, json.dumps(about, indent=2).encode() + b"\n")
    return world


def chat_texts(prompts: int, *, seed: int) -> Iterator[str]:
    """Every question and answer of a world as a chat template sets it: what the tokenizer is trained on."""
    for category, question in ratings.questions(prompts, seed=seed):
        yield f"user\n{question}"
        answers = dict.fromkeys(row["answer"] for row in ratings.rows(category, question, seed=seed))
        yield from (f"assistant\n{answer}" for answer in answers)


def _holds(folder: Path, about: dict) -> bool:
    marker, raw, model = folder / "world.json", folder / "raw" / "ratings.jsonl", folder / "model" / "config.json"
    return (
        all(path.is_file() for path in (marker, raw, model))
        and json.loads(marker.read_text()) == about
        and _digest(raw.read_bytes()) == about["ratings"]
    )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


def _write_model(folder: Path, *, prompts: int, seed: int) -> None:
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    save_model(beside, chat_texts(prompts, seed=seed), seed=seed)
    if folder.exists():
        shutil.rmtree(folder)
    beside.replace(folder)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
