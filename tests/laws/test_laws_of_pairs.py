"""Laws of the paired table: which two answers meet, and what never changes that."""

from collections import Counter
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.shape.pairing import STRATEGIES
from tests.laws import oracle, raw
from tests.laws.raw import laws
from tests.laws.way import Folder, close

PAIRINGS = (*STRATEGIES, "as_given")
every_strategy = pytest.mark.parametrize("pairing", STRATEGIES)
MARGINS = (Fraction(0), Fraction(1, 2), Fraction(1), Fraction(2))
seeds = st.integers(0, 3)
parameters = st.fixed_dictionaries(
    {
        "pairing": st.sampled_from(PAIRINGS),
        "min_margin": st.sampled_from(MARGINS),
        "ties": st.sampled_from(("drop", "soft")),
        "max_pairs_per_prompt": st.sampled_from((None, 1, 2, 3)),
        "seed": st.integers(0, 3),
    }
)


def shaped(seen, **asked):
    with Folder().hold(seen).rated() as way:
        return way.shaped("paired", **asked)


def by_sides(rows):
    """Rows by their two answers; the law that no two share them is checked on the way."""
    found = {frozenset((row["chosen_id"], row["rejected_id"])): row for row in rows}
    assert len(found) == len(rows)
    return found


@laws
@given(seen=raw.observations(), asked=parameters)
def test_pairs_are_those_of_trying_every_two_answers(seen, asked):
    wanted = oracle.paired(
        oracle.rated(seen),
        oracle.compared(seen),
        pairing=asked["pairing"],
        min_margin=asked["min_margin"],
        ties=asked["ties"],
        most=asked["max_pairs_per_prompt"],
        sources=raw.SOURCES,
        seed=asked["seed"],
    )
    held = oracle.merged(seen)
    found = by_sides(shaped(seen, **asked | {"min_margin": float(asked["min_margin"])}, test=0.4, validation=0.3))
    assert found.keys() == {one.sides for one in wanted}
    for one in wanted:
        row = found[one.sides]
        assert (row["prompt_id"], row["chosen_id"], row["source"]) == (one.prompt_id, one.chosen_id, one.source)
        assert (row["votes"], frozenset(row["raw_ref"])) == (one.votes, one.refs)
        for name in ("preference", "margin", "chosen_reward", "rejected_reward"):
            assert close(row[name], getattr(one, name)), name
        text = held[one.chosen_id]
        assert (row["category"], row["split"]) == (text.category, oracle.split_of(text.prompt, 0.4, 0.3))


@laws
@given(seen=raw.observations(), asked=parameters)
def test_no_answer_meets_itself_or_an_answer_to_another_prompt(seen, asked):
    held = oracle.merged(seen)
    for row in shaped(seen, **asked | {"min_margin": float(asked["min_margin"])}):
        assert row["chosen_id"] != row["rejected_id"]
        prompts = {oracle.prompt_id(held[row[side]].prompt) for side in ("chosen_id", "rejected_id")}
        assert prompts == {row["prompt_id"]}


def test_a_margin_of_one_is_one_whatever_its_floats_are():
    thirds = {"a": (2, 3, 3), "b": (1, 2, 2), "c": (2, 1, 2)}  # 8/3 and 5/3 are 0.9999999999999998 apart
    said = [("q", text, k, value) for text, values in thirds.items() for k, value in enumerate(values)]
    seen = [
        oracle.Observation("s", "f", place, prompt, text, "rating", Fraction(value), annotator=str(k))
        for place, (prompt, text, k, value) in enumerate(said)
    ]
    rows = shaped(seen, pairing="all", min_margin=1.0)
    best = oracle.completion_id("q", "a")
    assert [(row["chosen_id"], pytest.approx(1.0)) for row in rows] == [(best, row["margin"]) for row in rows]
    assert len(rows) == 2


@laws
@given(seen=raw.observations(("rating",)), asked=parameters)
def test_no_margin_is_under_the_smallest_one_asked_for_but_of_a_tie(seen, asked):
    least = float(asked["min_margin"])
    for row in shaped(seen, **asked | {"min_margin": least}):
        assert row["margin"] >= least * (1 - 1e-12) or (
            row["margin"] == 0 and asked["ties"] == "soft" and row["preference"] == 0.5
        )
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-12)


@laws
@given(seen=raw.observations(("rating", "rank"), most=24), seed=st.integers(0, 3))
def test_all_pairs_hold_the_pairs_of_every_other_strategy(seen, seed):
    with Folder().hold(seen).rated() as way:
        rows = {name: way.shaped("paired", pairing=name, ties="soft", seed=seed) for name in STRATEGIES}
    everything = by_sides(rows["all"])
    for name in STRATEGIES:
        for sides, row in by_sides(rows[name]).items():
            # Where several sources rate the same answers, another of them may speak for the pair.
            kept = everything[sides]
            assert kept == row or raw.SOURCES.index(kept["source"]) < raw.SOURCES.index(row["source"])


@every_strategy
@laws
@given(seen=raw.observations(("rating", "rank", "label"), most=20))
def test_a_prompt_of_n_answers_has_as_many_pairs_as_the_strategy_says(pairing, seen):
    seen = [one for one in seen if one.source == "s"]
    answers = Counter(one.prompt_id for one in oracle.rated(seen))
    expected = {"all": lambda n: comb(n, 2), "adjacent": lambda n: n - 1}.get(pairing, lambda n: min(n - 1, 1))
    found = Counter(row["prompt_id"] for row in shaped(seen, pairing=pairing, ties="soft"))
    assert found == {key: expected(n) for key, n in answers.items() if n > 1}


@laws
@given(seen=raw.observations(("rank",), most=20))
def test_a_ranking_with_ties_gives_a_pair_for_every_two_of_unequal_place(seen):
    seen = [one for one in seen if one.source == "s"]
    places = {one.completion_id: (one.prompt_id, one.rating) for one in oracle.rated(seen)}
    wanted = {
        (better, worse)
        for better, (prompt, place) in places.items()
        for worse, (same, below) in places.items()
        if prompt == same and place < below
    }
    assert {(row["chosen_id"], row["rejected_id"]) for row in shaped(seen, pairing="all")} == wanted


@laws
@given(seen=raw.observations(), pairing=st.sampled_from(PAIRINGS))
def test_dropped_ties_and_soft_ties_are_complements(seen, pairing):
    with Folder().hold(seen).rated() as way:
        drop, soft = (by_sides(way.shaped("paired", pairing=pairing, ties=ties)) for ties in ("drop", "soft"))
    assert all(row["preference"] != 0.5 for row in drop.values())
    decided = {sides: row for sides, row in soft.items() if row["preference"] != 0.5}
    assert decided.items() <= drop.items() and drop.keys() <= soft.keys()
    # A tie of one source stands before what a later one says of the same two answers; once dropped it does not.
    assert all(soft[sides]["preference"] == 0.5 for sides in drop.keys() - decided.keys())


@laws
@given(
    seen=raw.observations(most=24), pairing=st.sampled_from(PAIRINGS), most=st.integers(1, 4), seed=st.integers(0, 3)
)
def test_a_limit_of_pairs_takes_some_of_them_and_a_higher_limit_takes_those_too(seen, pairing, most, seed):
    with Folder().hold(seen).rated() as way:
        few, more, every = (
            by_sides(way.shaped("paired", pairing=pairing, max_pairs_per_prompt=limit, seed=seed))
            for limit in (most, most + 1, None)
        )
    assert few.items() <= more.items() <= every.items()
    of_prompt = Counter(row["prompt_id"] for row in every.values())
    wanted = {prompt: min(n, most) for prompt, n in of_prompt.items()}
    assert Counter(row["prompt_id"] for row in few.values()) == wanted


@laws
@given(seen=raw.observations(), more=raw.observations(), asked=parameters)
def test_prompts_of_which_nothing_new_is_said_keep_their_pairs_exactly(seen, more, asked):
    asked = asked | {"min_margin": float(asked["min_margin"]), "test": 0.4, "validation": 0.2}
    before = shaped(seen, **asked)
    known = {one.prompt_id for one in seen}
    arrived = [one for one in more if one.prompt_id not in known]
    renumbered = [one.__class__(**{**vars(one), "file": f"new-{one.file}"}) for one in arrived]
    after = shaped([*renumbered, *seen], **asked)
    assert [row for row in after if row["prompt_id"] in known] == before


@laws
@given(seen=raw.observations(), asked=parameters, draw=st.randoms(use_true_random=False))
def test_the_order_of_observations_changes_no_pair(seen, asked, draw):
    asked = asked | {"min_margin": float(asked["min_margin"])}
    same = [one.__class__(**{**vars(one), "category": None}) for one in seen]  # of a text said twice the first one's
    assert shaped(same, **asked) == shaped(draw.sample(same, len(same)), **asked)


@laws
@given(seen=raw.observations(), asked=parameters)
def test_the_lineage_of_a_pair_is_of_records_that_speak_of_it(seen, asked):
    records = {one.ref: one for one in seen}
    for row in shaped(seen, **asked | {"min_margin": float(asked["min_margin"])}):
        sides = {row["chosen_id"], row["rejected_id"]}
        told = [records[ref] for ref in row["raw_ref"]]
        assert {one.source for one in told} == {row["source"]}
        if row["margin"] is None:
            assert all({one.first, one.second} == sides for one in told)
        else:
            assert {one.first for one in told} == sides and all(one.second is None for one in told)
        assert len(told) == row["votes"]


@laws
@given(seen=raw.observations(), asked=parameters)
def test_every_candidate_and_every_rated_answer_is_accounted_for(seen, asked):
    asked = asked | {"min_margin": float(asked["min_margin"])}
    with Folder().hold(seen).rated() as way:
        rows = way.shaped("paired", **asked)
        candidates, answers = way.counts["shape"]
        rated, compared = way.answers(), way.compared()
    made = (
        [] if asked["pairing"] == "as_given" else oracle.proposed(oracle.rated(seen), asked["pairing"], asked["seed"])
    )
    assert (candidates.rows_in, candidates.out) == (len(compared) + len(made), len(rows))
    in_pairs = {row[side] for row in rows for side in ("chosen_id", "rejected_id")}
    assert answers.rows_in == len(rated)
    assert answers.out == sum(row["completion_id"] in in_pairs for row in rated)
