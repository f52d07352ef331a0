"""What must hold of a table before it is published: each expectation, met and unmet."""

import polars as pl
import pytest

from rlhf_data import tables
from rlhf_data.accounting import Count
from rlhf_data.expectations import effective_rows, unmet


def rows(**columns) -> pl.DataFrame:
    """Four train rows of weight 1, each of a prompt of its own, unless said otherwise."""
    whole = {"prompt": [0, 1, 2, 3], "split": ["train"] * 4, "weight": [1.0] * 4, "category": ["x", "x", "y", None]}
    return pl.DataFrame(whole | {"label": [True, True, False, None]} | columns)


def told(expect: dict, frame: pl.DataFrame | None = None) -> list[str]:
    return unmet(rows() if frame is None else frame, expect, refused=tables.empty("quarantine"), counts=[])


@pytest.mark.parametrize(
    ("met", "missed", "what"),
    [
        ({"rows": [4, 4]}, {"rows": [5, None]}, "expect.rows: 4 rows, fewer than 5"),
        ({"rows": [None, 4]}, {"rows": [None, 3]}, "expect.rows: 4 rows, more than 3"),
        (
            {"label_balance": [0.6, 0.7]},
            {"label_balance": [0.7, None]},
            "expect.label_balance: 66.7% of 3 labelled rows are desirable, not 70.0% to any",
        ),
        (
            {"label_balance": [None, 0.7]},
            {"label_balance": [0.1, 0.5]},
            "expect.label_balance: 66.7% of 3 labelled rows are desirable, not 10.0% to 50.0%",
        ),
        ({"categories": {"x": 2, "y": 1}}, {"categories": {"y": 2}}, "expect.categories: 1 rows of y, fewer than 2"),
        ({"categories": {"x": 2}}, {"categories": {"z": 1}}, "expect.categories: 0 rows of z, fewer than 1"),
    ],
)
def test_what_does_not_hold_is_said_with_its_figure(met, missed, what):
    assert told(met) == []
    assert told(missed) == [what]


def test_the_effective_sample_size_is_of_the_train_rows():
    # (3 + 1)² / (9 + 1) = 1.6 of two rows; the held-out rows' weights count for nothing
    frame = rows(split=["train", "train", "test", "test"], weight=[3.0, 1.0, 100.0, 0.0])
    assert told({"ess": 0.8}, frame) == []
    (missed,) = told({"ess": 0.81}, frame)
    assert missed == "expect.ess: the weights are worth 80.0% of the 2 train rows, less than 81.0%"


@pytest.mark.parametrize(("weights", "effective"), [([1.0] * 5, 5.0), ([2.0, 0.0], 1.0), ([0.0], 0.0), ([], 0.0)])
def test_equal_weights_are_worth_their_number(weights, effective):
    assert effective_rows(pl.Series(weights, dtype=pl.Float64)) == effective


def test_a_prompt_in_two_splits_is_never_published():
    frame = rows(prompt=[7, 7, 2, 3], split=["train", "test", "train", "test"])
    assert told({}, frame) == ["prompts stand in two splits, 1 in all, such as 7"]


def test_where_no_row_is_left_it_is_said_where_they_went():
    counts = [Count("shape", "pairs", 5, 0, filtered={"tie": 3, "margin under 1": 2})]
    found = unmet(rows().clear(), {}, refused=tables.empty("quarantine"), counts=counts)
    assert found == ["no row is left; they went to: tie 3, margin under 1 2"]
    both = [Count("clean", unit, 4, 0, quarantined={"text.email": 4}) for unit in ("completions", "judgments")]
    found = unmet(rows().clear(), {}, refused=tables.empty("quarantine"), counts=both)
    assert found == ["no row is left; they went to: text.email 4"]


def test_the_quarantine_rate_is_of_what_was_read():
    refused = pl.DataFrame({"source": ["s"], "raw_ref": [["f#0"]], "step": ["read"], "code": ["a.b"], "row": ["{}"]})
    refused = tables.conform(refused, "quarantine")
    read = [Count("read:s", unit, n, n) for unit, n in (("records", 4), ("observations", 10))]
    assert unmet(rows(), {"quarantine_rate": 0.1}, refused=refused, counts=read) == []
    (missed,) = unmet(rows(), {"quarantine_rate": 0.09}, refused=refused, counts=read)
    assert missed.startswith(
        "expect.quarantine_rate: 1 rows are refused, 10.0% of what was read, more than 9.0%: a.b 1"
    )
