"""A root's side of the split depends on nothing but its own text."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import tables, texts
from rlhf_data.ids import content_id
from rlhf_data.shape.split import assign, split
from tests.rows import text_folder

few = settings(deadline=None, max_examples=50)
# Roots as `ids.split_keys` gives them: 32 hex digits.
keys = st.lists(st.integers(0, 400).map(lambda n: content_id(str(n))), min_size=1, max_size=30)
share = st.floats(0, 0.5)


def sides(roots, *, test=0.0, validation=0.0) -> dict[str, str]:
    return dict(zip(roots, assign(pl.Series(roots), test=test, validation=validation), strict=True))


@few
@given(roots=keys, more=keys, test=share, validation=share)
def test_rows_that_arrive_move_no_row(roots, more, test, validation):
    before = sides(roots, test=test, validation=validation)
    after = sides(more + roots, test=test, validation=validation)
    assert {root: after[root] for root in roots} == before


@few
@given(roots=keys, test=share, more=share, validation=share)
def test_raising_the_test_share_moves_rows_into_the_test_split_only(roots, test, more, validation):
    before = sides(roots, test=test, validation=validation)
    after = sides(roots, test=min(test + more, 1 - validation), validation=validation)
    assert {after[root] for root in roots if after[root] != before[root]} <= {"test"}


@few
@given(roots=keys)
def test_without_shares_every_row_is_trained_on(roots):
    assert set(sides(roots).values()) == {"train"}


def test_a_share_is_the_share_of_roots():
    found = assign(pl.Series([content_id(str(i)) for i in range(10_000)]), test=0.1, validation=0.05)
    counted = dict(found.value_counts().iter_rows())
    # within four standard deviations of 1000 ± 30 and 500 ± 22
    assert abs(counted["test"] - 1000) < 120
    assert abs(counted["validation"] - 500) < 88


def test_prompts_with_one_root_stand_on_one_side(tmp_path):
    asked = [f"Question {i}?" for i in range(40)]
    variants = [v for root in asked for v in (root, f" {root.upper()}\n", root.replace(" ", "  "))]
    text = text_folder(tmp_path, {"s": [{"prompt": v, "completion": "yes", "rating": 1} for v in variants]})
    split({"text": text}, tmp_path, test=0.3, validation=0.3)
    prompts = texts.read(text, "prompts")
    side = prompts.join(tables.read(tmp_path / "splits.parquet", "splits"), on="prompt_row")
    assert (prompts.height, side.height) == (120, 120)
    assert side.group_by("split_key").agg(pl.col("split").n_unique())["split"].unique().to_list() == [1]
    assert side["split"].n_unique() == 3


def test_no_prompts_have_no_split(tmp_path):
    split({"text": text_folder(tmp_path, {"s": []})}, tmp_path, test=0.3)
    assert tables.read(tmp_path / "splits.parquet", "splits").height == 0
