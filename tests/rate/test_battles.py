"""Comparisons as battles of answers or of models: Bradley–Terry and Elo, laid on the answers."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data.rate.battles import battles, by_bradley_terry, by_elo
from rlhf_data.rate.elo import elo

few = settings(deadline=None, max_examples=20)
SCHEMA = {
    "judgment_row": pl.UInt32,
    "prompt_row": pl.UInt32,
    "completion_row": pl.UInt32,
    "other_row": pl.UInt32,
    "kind": pl.String,
    "value": pl.Float64,
    "position": pl.String,
    "source": pl.String,
    "file": pl.String,
    "record": pl.UInt32,
}
# Prompt 0 has answers 0, 1, 2 of models a, b, c; prompt 1 has 3, 4 of a, b; answer 5 is of no named model.
COMPLETIONS = pl.DataFrame(
    {
        "completion_row": pl.Series(range(6), dtype=pl.UInt32),
        "prompt_row": pl.Series([0, 0, 0, 1, 1, 1], dtype=pl.UInt32),
        "model": ["a", "b", "c", "a", "b", None],
        "length": pl.Series([300, 100, 0, 0, 10, 10], dtype=pl.UInt32),
    }
)


def judged(*rows: tuple[int, int, float], **columns) -> pl.DataFrame:
    """(answer, other, value) of each."""
    given = [
        {"judgment_row": k, "prompt_row": a // 3, "completion_row": a, "other_row": b, "kind": "comparison", "value": v}
        | {"source": "s", "file": "f", "record": k}
        for k, (a, b, v) in enumerate(rows)
    ]
    return pl.DataFrame(given, schema=SCHEMA).with_columns(pl.Series(name, value) for name, value in columns.items())


def rewards(rated: pl.DataFrame) -> dict[int, float]:
    return dict(rated.select("completion_row", "reward").iter_rows())


def test_an_answers_reward_is_the_strength_of_its_model_where_models_meet():
    found = by_bradley_terry(judged((0, 1, 1.0), (3, 4, 1.0), (4, 3, 1.0), (1, 2, 1.0)), COMPLETIONS, of="model")
    strength = dict(found.models.select("model", "strength").iter_rows())
    assert rewards(found.rated) == {
        0: strength["a"],
        1: strength["b"],
        2: strength["c"],
        3: strength["a"],
        4: strength["b"],
    }
    assert strength["a"] > strength["b"] > strength["c"]
    assert found.models["battles"].to_list() == [3, 4, 1]


def test_three_wins_of_four_are_ln_three_without_a_prior():
    found = by_bradley_terry(judged(*[(0, 1, 1.0)] * 3, (1, 0, 1.0)), COMPLETIONS, prior=None)
    reward = rewards(found.rated)
    assert reward[0] - reward[1] == pytest.approx(math.log(3))
    assert found.rated["votes"].to_list() == [4, 4]
    assert found.rated["judgment_rows"].to_list() == [[0, 1, 2, 3]] * 2
    assert found.models.height == 0


def test_an_answer_leans_on_what_its_model_did_elsewhere():
    # Answers 3 and 4 tie; the models of 0 and 1 differ, and so do their other answers.
    leaning = by_bradley_terry(judged(*[(0, 1, 1.0)] * 6, (3, 4, 0.5)), COMPLETIONS)
    assert rewards(leaning.rated)[3] > rewards(leaning.rated)[4]
    nameless = COMPLETIONS.with_columns(model=pl.lit(None, dtype=pl.String))
    alone = by_bradley_terry(judged(*[(0, 1, 1.0)] * 6, (3, 4, 0.5)), nameless)
    assert rewards(alone.rated)[3] == rewards(alone.rated)[4] == 0.0
    assert leaning.models["model"].to_list() == ["a", "b"] and alone.models.height == 0


def test_sources_are_fitted_together_and_have_rows_of_their_own():
    rows = judged((0, 1, 1.0), (0, 1, 1.0), source=["s", "t"])
    found = by_bradley_terry(rows, COMPLETIONS)
    assert found.rated.select("completion_row", "source", "votes").rows() == [
        (0, "s", 1),
        (0, "t", 1),
        (1, "s", 1),
        (1, "t", 1),
    ]
    assert found.rated["reward"].n_unique() == 2


def test_covariates_are_of_the_first_against_the_second():
    rows = judged((0, 1, 1.0), (1, 0, 1.0), (3, 2, 1.0), (4, 5, 1.0), position=["first", "second", None, "first"])
    found = battles(rows, COMPLETIONS, covariates=["length", "position"]).rows
    # 300 and 100 characters: (300 − 100) / 400; answers 3 and 2 are both empty
    assert found["by_length"].to_list() == [0.5, -0.5, 0.0, 0.0]
    assert found["by_position"].to_list() == [1.0, -1.0, 0.0, 1.0]


def test_an_advantage_of_the_place_is_no_strength():
    # Whoever is shown first wins 9 of 10, and each is first as often: equal strengths, and the place is worth ln 9.
    shown = [(0, 1, float(k % 10 > 0)) for k in range(200)] + [(1, 0, float(k % 10 > 0)) for k in range(200)]
    rows = judged(*shown, position=["first"] * 400)
    found = by_bradley_terry(rows, COMPLETIONS, of="model", covariates=["position"], prior={"effect": 1000.0})
    assert found.effects["position"][0] == pytest.approx(math.log(9), abs=1e-3)
    assert found.models["strength"].to_list() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_davidsons_ties_are_reported():
    found = by_bradley_terry(
        judged((0, 1, 1.0), (1, 0, 1.0), (0, 1, 0.5)), COMPLETIONS, ties="davidson", prior={"effect": 1000.0}
    )
    # equals that tie once in three: ν / (2 + ν) = 1/3, so ν = 1
    assert found.effects["tie"][0] == pytest.approx(0.0, abs=1e-3)


def test_battles_of_unnamed_models_and_within_a_model_stand_apart():
    of_one = COMPLETIONS.with_columns(model=pl.Series(["a", "a", "c", "a", "b", None]))
    rows = judged((0, 1, 1.0), (0, 2, 1.0), (4, 5, 1.0))
    found = battles(rows, of_one, of="model")
    assert [frame["judgment_row"].to_list() for frame in (found.within, found.rows, found.unnamed)] == [[0], [1], [2]]
    assert battles(rows, of_one, of="answer").rows.height == 3


def test_other_kinds_are_no_battles_and_none_give_empty_tables():
    ratings = judged((0, 1, 1.0)).with_columns(kind=pl.lit("rating"))
    for of in ("answer", "model"):
        for found in (by_bradley_terry(ratings, COMPLETIONS, of=of), by_elo(ratings, COMPLETIONS, of=of)):
            assert found.rated.height == found.models.height == 0
            assert found.rated.schema == by_bradley_terry(judged((0, 1, 1.0)), COMPLETIONS).rated.schema


@pytest.mark.parametrize("of", ["answer", "model"])
@few
@given(
    rows=st.lists(st.tuples(st.permutations(range(3)), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=10),
    data=st.data(),
)
def test_the_order_of_judgments_changes_no_digit(of, rows, data):
    frame = judged(*((p[0], p[1], v) for p, v in rows))
    shuffled = frame[data.draw(st.permutations(range(len(rows))))]
    for rate in (by_bradley_terry, by_elo):
        ours, theirs = rate(frame, COMPLETIONS, of=of), rate(shuffled, COMPLETIONS, of=of)
        assert_frame_equal(ours.rated, theirs.rated, check_exact=True)
        assert_frame_equal(ours.models, theirs.models, check_exact=True)


def test_maximum_likelihood_that_does_not_exist_names_the_models():
    with pytest.raises(ValueError, match=r"\(a\); \(b\); \(c\): give a prior"):
        by_bradley_terry(judged((0, 1, 1.0), (1, 2, 1.0)), COMPLETIONS, of="model", prior=None)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"of": "prompt"}, "no contestants named 'prompt'; known: answer, model"),
        ({"covariates": ["colour"]}, "no covariate named 'colour'; known: length, position"),
        ({"prior": {"sd": 1.0}}, "no prior of sd; known: strength, answer, effect"),
        ({"ties": "never"}, "no ties named 'never'"),
    ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(wrong, what):
    with pytest.raises(ValueError, match=what):
        by_bradley_terry(judged((0, 1, 1.0)), COMPLETIONS, **wrong)
    with pytest.raises(ValueError, match="completions have no column length; they have"):
        battles(judged((0, 1, 1.0)), COMPLETIONS.drop("length"), covariates=["length"])


def test_a_battle_of_equals_moves_half_of_k_and_the_sum_stays():
    assert elo([0], [1], [1.0], 2, k=32.0).tolist() == [1016.0, 984.0]
    assert elo([0], [1], [0.5], 2).tolist() == [1000.0, 1000.0]
    assert elo([], [], [], 2, start=5.0).tolist() == [5.0, 5.0]


def test_a_lead_of_the_scale_is_expected_to_win_base_to_one():
    # The first win moves each by k / 2 = 200, so that the lead is the scale when they meet again.
    after = elo([0, 0], [1, 1], [1.0, 1.0], 2, k=400.0, base=10.0, scale=400.0, start=0.0)
    assert after[0] == pytest.approx(200.0 + 400.0 * (1.0 - 10.0 / 11.0))


def test_elo_depends_on_the_order_and_the_order_on_time_then_on_file_and_record():
    rows = judged((0, 1, 1.0), (1, 0, 1.0))
    forth = rewards(by_elo(rows, COMPLETIONS, k=32.0).rated)
    assert forth[1] > forth[0]  # the latest wins
    assert rewards(by_elo(rows[::-1], COMPLETIONS, k=32.0).rated) == forth
    timed = rows.with_columns(at=pl.Series([2, 1]))
    assert rewards(by_elo(timed, COMPLETIONS, time="at", k=32.0).rated) == {0: forth[1], 1: forth[0]}
    with pytest.raises(ValueError, match="1 of 2 battles have no at"):
        by_elo(timed.with_columns(at=pl.Series([None, 1])), COMPLETIONS, time="at")
    with pytest.raises(ValueError, match="judgments have no column at"):
        by_elo(rows, COMPLETIONS, time="at")


@pytest.mark.parametrize("wrong", [{"k": 0.0}, {"base": 1.0}, {"scale": -1.0}, {"start": math.nan}, {"k": math.inf}])
def test_a_parameter_out_of_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"elo: {next(iter(wrong))} must be"):
        elo([0], [1], [1.0], 2, **wrong)
    with pytest.raises(ValueError, match="1 of 2 battles have a value that is no probability"):
        elo([0, 1], [1, 0], [1.0, math.nan], 2)


def test_elo_of_many_battles_ends_near_the_strengths_of_bradley_terry():
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.0, -1.0])
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    rows = [
        (*pairs[k], float(rng.random() < 1 / (1 + math.exp(truth[pairs[k][1]] - truth[pairs[k][0]]))))
        for k in rng.integers(0, 6, 6000)
    ]
    frame = judged(*rows)
    nats = by_elo(frame, COMPLETIONS, of="model", k=2.0).models["strength"].to_numpy() * math.log(10) / 400
    theirs = by_bradley_terry(frame, COMPLETIONS, of="model").models["strength"].to_numpy()
    np.testing.assert_allclose(nats - nats.mean(), theirs - theirs.mean(), atol=0.15)
