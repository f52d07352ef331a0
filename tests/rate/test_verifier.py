"""A verifier's answers are rewards, or refusals; none is lost."""

import math

import polars as pl
import pytest

from rlhf_data.ids import MESSAGES
from rlhf_data.rate import verifier
from rlhf_data.rate.verifier import find_verifier, verify


def batch(*answers: str, start: int = 0) -> pl.DataFrame:
    schema = {"completion_row": pl.UInt32, "prompt": MESSAGES, "completion": pl.String}
    rows = [(start + k, [{"role": "user", "content": "2+2?"}], answer) for k, answer in enumerate(answers)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def arithmetic(messages, answer):
    """1 for a right sum; whatever a bad verifier might do for other answers."""
    assert messages == [{"role": "user", "content": "2+2?"}]
    outcomes = {"4": True, "5": False, "four": None, "nan": math.nan, "inf": -math.inf, "half": 0.5, "text": "0.25"}
    return outcomes[answer]


def test_each_answer_has_a_reward_or_a_reason():
    found = verify([batch("4", "5", "half"), batch("four", "nan", "inf", "six", "text", start=3)], arithmetic)
    assert found.rewards.rows() == [(0, 1.0), (1, 0.0), (2, 0.5), (7, 0.25)]
    assert found.refused.rows() == [
        (3, verifier.NO_NUMBER, "None"),
        (4, verifier.NOT_FINITE, "nan"),
        (5, verifier.NOT_FINITE, "-inf"),
        (6, verifier.RAISED, "KeyError: 'six'"),
    ]
    assert set(found.refused["code"]) <= set(verifier.DETAILS)


def test_a_verifier_that_stops_the_program_stops_it():
    def stop(messages, answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify([batch("4")], stop)


def test_no_answers_give_empty_tables():
    found = verify([], arithmetic)
    assert found.rewards.schema == {"completion_row": pl.UInt32, "reward": pl.Float64}
    assert found.refused.height == 0


@pytest.mark.parametrize("name", ["nosuchmodule:f", "math:nothing", "math", ":f", "math:pi"])
def test_what_names_no_function_is_refused(name):
    with pytest.raises(ValueError, match=f"verifier {name}"):
        find_verifier(name)
