"""A program says how good an answer is: the reward is what a function of ours returns."""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import polars as pl

Message = dict[str, str]
Verifier = Callable[[list[Message], str], Any]

RAISED, NO_NUMBER, NOT_FINITE = "verifier.raised", "verifier.no_number", "verifier.not_finite"
DETAILS = {
    RAISED: "the verifier raised an exception",
    NO_NUMBER: "the verifier must return a number",
    NOT_FINITE: "the verifier must return a finite number",
}


class Verified(NamedTuple):
    """What a verifier said of answers.

    Attributes:
        rewards: completion_row, reward; in the order given.
        refused: completion_row, code (a key of DETAILS), said (the exception, or what was returned).
    """

    rewards: pl.DataFrame
    refused: pl.DataFrame


def find_verifier(name: str) -> Verifier:
    """The function that "module:function" names.

    Raises:
        ValueError: there is none.

    >>> find_verifier("math:fsum").__name__
    'fsum'
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no verifier {name}: name an importable function as module:function ({error})") from error
    if not callable(found):
        raise ValueError(f"the verifier {name} is no function")
    return found


def verify(batches: Iterable[pl.DataFrame], verifier: Verifier) -> Verified:
    """Ask a verifier about every answer, one after another.

    Args:
        batches: completion_row, prompt (messages), completion (the answer).
        verifier: (messages, answer) → reward; true and false are 1 and 0. It must depend on nothing else, or the same
            data gives other rewards.

    Returns:
        a reward or a refusal for every answer: what the verifier raises costs that answer alone.
    """
    rewards: list[tuple[int, float]] = []
    refused: list[tuple[int, str, str]] = []
    for batch in batches:
        for row, messages, answer in batch.select("completion_row", "prompt", "completion").iter_rows():
            reward, wrong = _asked(verifier, messages, answer)
            if wrong is None:
                rewards.append((row, reward))
            else:
                refused.append((row, *wrong))
    of_reward = {"completion_row": pl.UInt32, "reward": pl.Float64}
    of_refusal = {"completion_row": pl.UInt32, "code": pl.String, "said": pl.String}
    return Verified(
        pl.DataFrame(rewards, schema=of_reward, orient="row"), pl.DataFrame(refused, schema=of_refusal, orient="row")
    )


def _asked(verifier: Verifier, messages: list[Message], answer: str) -> tuple[float, tuple[str, str] | None]:
    """A reward, and what is wrong with it: a code and what was said."""
    try:
        said = verifier(messages, answer)
    except Exception as error:  # whatever a program of the user's may raise
        return math.nan, (RAISED, f"{type(error).__name__}: {error}"[:200])
    try:
        reward = float(said)
    except (TypeError, ValueError, OverflowError):
        return math.nan, (NO_NUMBER, repr(said)[:200])
    return reward, None if math.isfinite(reward) else (NOT_FINITE, repr(said)[:200])
