"""Laws of rating: what observations become, whoever made them in whatever order."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import oracle, raw
from tests.laws.raw import laws
from tests.laws.way import Folder, close

HALF = Fraction(1, 2)
SCALES = (None, (1, 5), (0, 10), (2, 4))
permuted = st.randoms(use_true_random=False)


@laws
@given(seen=raw.observations(), scale=st.sampled_from(SCALES))
def test_answers_are_rated_as_by_hand(seen, scale):
    with Folder().hold(seen).rated(scale=scale) as way:
        wanted = {(one.completion_id, one.source): one for one in oracle.rated(seen, scale)}
        found = {(row["completion_id"], row["source"]): row for row in way.answers()}
    assert found.keys() == wanted.keys()
    for key, one in wanted.items():
        row = found[key]
        assert close(row["rating"], one.rating) and close(row["reward"], one.reward)
        assert close(row["reward_std"] and row["reward_std"] ** 2, one.variance)
        assert (row["label"], row["votes"], frozenset(row["raw_ref"])) == (one.label, one.votes, one.refs)


@laws
@given(seen=raw.observations(("comparison",)), method=st.sampled_from(("mean", "majority")))
def test_votes_become_the_preferences_that_counting_by_hand_gives(seen, method):
    with Folder().hold(seen).rated(method=method) as way:
        wanted = {(one.sides, one.source): one for one in oracle.compared(seen, method)}
        rows = way.compared()
    found = {(frozenset((row["chosen_id"], row["rejected_id"])), row["source"]): row for row in rows}
    assert len(rows) == len(found) and found.keys() == wanted.keys()
    for key, one in wanted.items():
        row = found[key]
        assert close(row["preference"], one.preference) and HALF <= row["preference"] <= 1
        assert (row["chosen_id"], row["votes"], frozenset(row["raw_ref"])) == (one.chosen_id, one.votes, one.refs)


@laws
@given(seen=raw.observations(("comparison",)), method=st.sampled_from(("mean", "majority")))
def test_which_answer_was_named_first_changes_nothing(seen, method):
    swapped = [replace(one, completion=one.other, other=one.completion, value=1 - one.value) for one in seen]
    found = []
    for turned in (seen, swapped):
        with Folder().hold(turned).rated(method=method) as way:
            found.append(way.compared())
    assert found[0] == found[1]


@laws
@given(seen=raw.observations(("comparison",)))
def test_turning_every_verdict_round_turns_every_pair_that_is_no_tie(seen):
    found = []
    for turned in (seen, [replace(one, value=1 - one.value) for one in seen]):
        with Folder().hold(turned).rated() as way:
            found.append(way.compared())
    for one, other in zip(*found, strict=True):
        sides = (one["chosen_id"], one["rejected_id"])
        assert (other["chosen_id"], other["rejected_id"]) == (sides if one["preference"] == 0.5 else sides[::-1])
        assert one["preference"] == other["preference"]


@laws
@given(seen=raw.observations(("comparison",)))
def test_mean_and_majority_agree_where_all_who_voted_agree(seen):
    certain = [replace(one, value=Fraction(round(one.value))) for one in seen]
    found = {}
    for method in ("mean", "majority"):
        with Folder().hold(certain).rated(method=method) as way:
            found[method] = way.compared()
    for mean, majority in zip(found["mean"], found["majority"], strict=True):
        if mean["preference"] == 1:
            assert mean == majority


@laws
@given(seen=raw.observations(("rating",)), scale=st.sampled_from(((1, 5), (0, 10), (-3, 7))))
def test_rewards_follow_ratings_on_any_linear_scale(seen, scale):
    with Folder().hold(seen).rated(scale=scale) as way:
        rows = sorted(way.answers(), key=lambda row: row["rating"])
    for low, high in pairwise(rows):
        assert (low["reward"] < high["reward"]) == (low["rating"] < high["rating"])
    assert all(0 <= row["reward"] <= 1 for row in rows)


@laws
@given(seen=raw.observations(), draw=permuted)
def test_the_order_of_observations_changes_no_digit_of_a_rating(seen, draw):
    with Folder().hold(seen).rated() as one, Folder().hold(draw.sample(seen, len(seen))).rated() as other:
        assert one.answers() == other.answers()
        assert one.compared() == other.compared()


@laws
@given(seen=raw.observations(), by=st.sampled_from((None, "rating", "votes", "rank", "label")))
def test_every_judgment_is_rated_merged_refused_or_left_out(seen, by):
    scale = (2, 4)
    with Folder().hold(seen).rated(by=by, scale=scale) as way:
        (count,) = way.counts["rate"]
        rows = [*way.answers(), *way.compared()]
        refused = way.quarantine("rate")
    heard = {None: raw.KINDS, "votes": ("comparison",), "rank": ("rank",)}.get(by, (by, "demonstration"))
    unheard = [one for one in seen if one.kind not in heard]
    off = [one for one in seen if one.kind == "rating" and one.kind in heard and not 2 <= one.value <= 4]
    assert count.rows_in == len(seen) and count.out == len(rows)
    assert sum(count.filtered.values()) == len(unheard)
    assert sum(count.quarantined.values()) == len(refused) == len(off)
    assert sorted(ref for row in refused for ref in row["raw_ref"]) == sorted(one.ref for one in off)
    named = {ref for row in [*rows, *refused] for ref in row["raw_ref"]}
    assert named == {one.ref for one in seen} - {one.ref for one in unheard}


@pytest.mark.parametrize("scale", [None, (0, 5)])
@laws
@given(seen=raw.observations(("rating",)), lifted=st.integers(0, 15))
def test_a_better_rating_lowers_no_reward(scale, seen, lifted):
    if not seen:
        return
    lifted %= len(seen)
    better = [replace(one, value=min(one.value + 1, Fraction(5))) if k == lifted else one for k, one in enumerate(seen)]
    with Folder().hold(seen).rated(scale=scale) as one, Folder().hold(better).rated(scale=scale) as other:
        for before, after in zip(one.answers(), other.answers(), strict=True):
            assert before["reward"] <= after["reward"]
            same = (before["completion_id"], before["source"]) != (seen[lifted].first, seen[lifted].source)
            assert before == after or not same
