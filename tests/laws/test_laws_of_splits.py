"""Laws of the split: a prompt stands where its own root says, whatever else there is."""

from hypothesis import given
from hypothesis import strategies as st

from tests.laws import oracle, raw
from tests.laws.raw import laws
from tests.laws.way import Folder

shares = st.sampled_from((0.0, 0.2, 0.4, 0.5))


def splits(seen, **shares):
    """The split of each prompt that has a row; the law that it has one only is checked on the way."""
    with Folder().hold(seen).rated() as way:
        rows = way.shaped("unpaired", ties="soft", **shares)
    found = {(row["prompt_id"], row["split"]) for row in rows}
    assert len(found) == len(dict(found))
    return dict(found)


@laws
@given(seen=raw.observations(), test=shares, validation=shares)
def test_a_prompt_stands_where_the_hash_of_its_root_says(seen, test, validation):
    wanted = {one.prompt_id: oracle.split_of(one.prompt, test, validation) for one in seen}
    assert splits(seen, test=test, validation=validation) == wanted


@laws
@given(seen=raw.observations(), test=shares)
def test_prompts_that_differ_in_form_only_stand_on_one_side(seen, test):
    found = splits(seen, test=test)
    sides = {(oracle.normalised(one.prompt), found[one.prompt_id]) for one in seen}
    assert len(sides) == len(dict(sides))


@laws
@given(seen=raw.observations(), more=raw.observations(), test=shares, validation=shares)
def test_no_prompt_moves_when_rows_arrive(seen, more, test, validation):
    before = splits(seen, test=test, validation=validation)
    assert before.items() <= splits([*seen, *more], test=test, validation=validation).items()


@laws
@given(seen=raw.observations(), test=shares, more=shares, validation=shares)
def test_a_larger_test_share_moves_prompts_into_the_test_split_only(seen, test, more, validation):
    before = splits(seen, test=test, validation=validation)
    after = splits(seen, test=min(test + more, 1 - validation), validation=validation)
    assert all(after[key] in (side, "test") for key, side in before.items())
