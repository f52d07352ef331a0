"""Mismatched partners: a completion of another prompt, chosen by hash."""

from itertools import pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import ids
from rlhf_data.shape.partners import mismatched

few = settings(deadline=None, max_examples=50)
# (prompt, split) of each row; few prompts, so that neighbours in the circle often share one.
asked = st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(["train", "test"])), max_size=12)


def table(rows) -> pl.DataFrame:
    columns = {"prompt_row": pl.UInt32, "completion_row": pl.UInt32, "completion_id": pl.String, "split": pl.String}
    found = [("pqr".index(p), i, f"{i:032x}"[::-1], split) for i, (p, split) in enumerate(rows)]
    return pl.DataFrame(found, schema=columns, orient="row").cast({"split": pl.Categorical})


def partners(rows: pl.DataFrame, seed: int = 0) -> dict[int, int | None]:
    return dict(zip(rows["completion_row"], mismatched(rows, seed), strict=True))


@few
@given(rows=asked, seed=st.integers(0, 5))
def test_a_partner_is_of_another_prompt_of_the_same_split_and_missing_only_where_there_is_none(rows, seed):
    frame = table(rows)
    place = {c: (p, split) for p, c, _, split in frame.iter_rows()}
    for completion, partner in partners(frame, seed).items():
        prompt, split = place[completion]
        if partner is None:
            assert {p for p, s in place.values() if s == split} == {prompt}
        else:
            assert place[partner][0] != prompt
            assert place[partner][1] == split


@few
@given(rows=asked, data=st.data())
def test_the_order_of_rows_does_not_matter(rows, data):
    frame = table(rows)
    shuffled = frame[data.draw(st.permutations(range(frame.height)))] if rows else frame
    assert partners(shuffled) == partners(frame)


def circle(prompts: str, seed: int = 0) -> pl.DataFrame:
    """Rows whose places in the circle are in this order: each gets an id with a hash after that of the one before."""
    candidates = pl.Series([f"{i:032x}"[::-1] for i in range(1000)])
    ordered = candidates[ids.keyed_hash(candidates, "mismatched", seed).arg_sort()]
    columns = {
        "prompt_row": pl.Series(["pqr".index(p) for p in prompts], dtype=pl.UInt32),
        "completion_row": pl.Series(range(len(prompts)), dtype=pl.UInt32),
        "completion_id": ordered.head(len(prompts)),
    }
    return pl.DataFrame(columns).with_columns(split=pl.lit("train", dtype=pl.Categorical))


def test_the_next_row_of_another_prompt_is_the_partner():
    frame = circle("ppqrr")
    c = frame["completion_row"]
    assert mismatched(frame, 0).to_list() == [c[2], c[2], c[3], c[0], c[0]]


def test_where_the_circle_closes_between_two_runs_of_one_prompt_the_second_run_is_taken():
    frame = circle("pqp")
    c = frame["completion_row"]
    assert mismatched(frame, 0).to_list() == [c[1], c[2], c[1]]


def test_two_prompts_are_each_others_partners():
    frame = circle("pq")
    c = frame["completion_row"]
    assert mismatched(frame, 0).to_list() == [c[1], c[0]]


def test_one_prompt_has_no_partners_and_no_rows_none_either():
    assert mismatched(circle("pp"), 0).to_list() == [None, None]
    assert mismatched(table([]), 0).to_list() == []


def test_a_row_that_arrives_changes_the_partners_of_its_neighbours_only():
    frame = circle("pqrpqrpqr")
    before = partners(frame.filter(pl.col("completion_row") != frame["completion_row"][4]))
    after = partners(frame)
    changed = [c for c in before if before[c] != after[c]]
    assert changed == [frame["completion_row"][3]]
    assert all(a != b for a, b in pairwise(frame["prompt_row"]))
