"""Laws of the unpaired table: one row an answer, whoever judged it and how."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tests.laws import oracle, raw
from tests.laws.raw import laws
from tests.laws.way import Folder, close

THRESHOLDS = (Fraction(-2), Fraction(0), Fraction(1, 2), Fraction(3))
parameters = st.fixed_dictionaries(
    {
        "label": st.sampled_from(("source", "threshold", "prompt_mean")),
        "threshold": st.sampled_from(THRESHOLDS),
        "gap": st.sampled_from((Fraction(0), Fraction(1, 2), Fraction(1))),
        "ties": st.sampled_from(("drop", "soft")),
    }
)


def floats(asked):
    return {key: float(value) if isinstance(value, Fraction) else value for key, value in asked.items()}


def shaped(seen, **asked):
    with Folder().hold(seen).rated() as way:
        return way.shaped("unpaired", **asked)


@laws
@given(seen=raw.observations(), asked=parameters)
def test_answers_are_those_of_counting_by_hand(seen, asked):
    wanted = oracle.unpaired(oracle.rated(seen), oracle.compared(seen), **asked, sources=raw.SOURCES)
    rows = shaped(seen, **floats(asked), test=0.4)
    found = {row["completion_id"]: row for row in rows}
    assert len(found) == len(rows) and found.keys() == {one.completion_id for one in wanted}
    held = oracle.merged(seen)
    for one in wanted:
        row = found[one.completion_id]
        assert (row["prompt_id"], row["source"], row["label"]) == (one.prompt_id, one.source, one.label)
        assert (row["votes"], frozenset(row["raw_ref"])) == (one.votes, one.refs)
        assert close(row["rating"], one.rating) and close(row["reward"], one.reward)
        text = held[one.completion_id]
        assert (row["category"], row["split"]) == (text.category, oracle.split_of(text.prompt, 0.4, 0.0))


@laws
@given(seen=raw.observations(), asked=parameters)
def test_an_answer_is_one_row_at_most_and_none_where_nobody_judged_it(seen, asked):
    rows = shaped(seen, **floats(asked))
    answers = [row["completion_id"] for row in rows]
    assert len(answers) == len(set(answers)) <= len(oracle.merged(seen))
    assert set(answers) <= oracle.merged(seen).keys()


@laws
@given(seen=raw.observations())
def test_unpairing_loses_no_answer_that_is_in_a_pair(seen):
    with Folder().hold(seen).rated() as way:
        pairs = way.shaped("paired", pairing="all", ties="soft")
        answers = {row["completion_id"] for row in way.shaped("unpaired", ties="soft")}
    assert {row[side] for row in pairs for side in ("chosen_id", "rejected_id")} <= answers
    assert answers == oracle.merged(seen).keys()


@laws
@given(seen=raw.observations(), steps=st.tuples(st.integers(-4, 4), st.integers(0, 4)))
def test_raising_the_threshold_makes_no_answer_desirable(seen, steps):
    low = float(steps[0])
    with Folder().hold(seen).rated() as way:
        found = [
            {row["completion_id"] for row in way.shaped("unpaired", label="threshold", threshold=at) if row["label"]}
            for at in (low, low + steps[1])
        ]
    assert found[1] <= found[0]


@laws
@given(seen=raw.observations(("comparison", "label")), draw=st.randoms(use_true_random=False), asked=parameters)
def test_the_order_of_observations_changes_no_answer(seen, draw, asked):
    same = [one.__class__(**{**vars(one), "category": None}) for one in seen]
    asked = floats(asked)
    assert shaped(same, **asked) == shaped(draw.sample(same, len(same)), **asked)


@laws
@given(seen=raw.observations(), more=raw.observations(), asked=parameters)
def test_prompts_of_which_nothing_new_is_said_keep_their_answers_exactly(seen, more, asked):
    asked = floats(asked)
    known = {one.prompt_id for one in seen}
    arrived = [one.__class__(**{**vars(one), "file": f"new-{one.file}"}) for one in more if one.prompt_id not in known]
    after = shaped([*arrived, *seen], **asked)
    assert [row for row in after if row["prompt_id"] in known] == shaped(seen, **asked)


@laws
@given(
    seen=raw.observations(("label", "comparison"), most=24),
    balance=st.sampled_from((0.25, 0.5, 0.75)),
    test=st.sampled_from((0.0, 0.5)),
    seed=st.integers(0, 3),
)
def test_balance_leaves_out_as_few_rows_of_one_class_as_it_takes(seen, balance, test, seed):
    def counted(rows):
        train = [row["label"] for row in rows if row["split"] == "train"]
        return train.count(True), train.count(False)

    with Folder().hold(seen).rated() as way:
        every = way.shaped("unpaired", ties="soft", test=test)
        good, bad = counted(every)
        if not good or not bad:
            return
        some = way.shaped("unpaired", ties="soft", test=test, balance=balance, seed=seed)
    part = Fraction(balance)
    assert counted(some) == (min(good, int(bad * part / (1 - part))), min(bad, int(good * (1 - part) / part)))
    kept = [row["completion_id"] for row in some]
    assert some == [row for row in every if row["completion_id"] in kept]
    assert all(row in some for row in every if row["split"] != "train" or row["label"] is None)


@laws
@given(seen=raw.observations(), asked=parameters)
def test_every_answer_and_side_of_a_pair_is_accounted_for(seen, asked):
    with Folder().hold(seen).rated() as way:
        rows = way.shaped("unpaired", **floats(asked))
        (count,) = way.counts["shape"]
        assert count.rows_in == len(way.answers()) + 2 * len(way.compared())
    assert count.out == len(rows)
