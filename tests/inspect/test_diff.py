"""What a diff says: each kind of change by hand, laws over random tables, and two builds of one spec."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.cli import run_command
from rlhf_data.inspect import diff as module
from rlhf_data.inspect.diff import KINDS, compare, named
from tests.project import SPEC, build_demo, ratings

COLUMNS = {
    "prompt_id": pl.String, "pair_id": pl.String, "chosen_id": pl.String, "rejected_id": pl.String,
    "margin": pl.Float64, "weight": pl.Float64, "split": pl.String, "source": pl.String,
    "ref_chosen_logps": pl.Float64, "raw_ref": pl.List(pl.String),
}  # fmt: skip


def pair(prompt="p", chosen="a", rejected="b", **values):
    whole = {"margin": 1.0, "weight": 1.0, "split": "train", "source": "s", "raw_ref": ["f#1"], **values}
    return {
        "prompt_id": prompt,
        "pair_id": f"{chosen}{rejected}",
        "chosen_id": chosen,
        "rejected_id": rejected,
        **whole,
    }


def frame(*rows):
    return pl.DataFrame(list(rows), schema=COLUMNS)


def changes(old, new):
    found, unchanged = compare(frame(*old), frame(*new), "paired")
    rows = named(found.lazy()).collect()
    return {row["row_id"]: (row["was_id"], *row["kinds"]) for row in rows.iter_rows(named=True)}, unchanged


def test_rows_that_are_the_same_are_counted_and_not_listed():
    assert changes([pair(), pair(rejected="c")], [pair(rejected="c"), pair()]) == ({}, 2)


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("margin", 2.0, "re-rated"),
        ("margin", None, "re-rated"),
        ("weight", 0.5, "re-weighted"),
        ("split", "test", "re-split"),
        ("source", "t", "re-described"),
        ("ref_chosen_logps", -3.0, "re-scored"),
        ("raw_ref", ["f#1", "f#2"], "re-traced"),
        ("raw_ref", ["f#2"], "re-traced"),
    ],
)
def test_a_row_that_stayed_is_changed_in_the_kind_of_its_column(column, value, kind):
    assert changes([pair()], [pair(**{column: value})]) == ({"ab": (None, kind)}, 0)
    assert changes([pair(**{column: value})], [pair()]) == ({"ab": (None, kind)}, 0)


def test_a_row_may_change_in_several_kinds():
    assert changes([pair()], [pair(weight=2.0, split="test")])[0] == {"ab": (None, "re-weighted", "re-split")}


def test_reference_log_probs_that_differ_by_rounding_are_the_same():
    assert changes([pair(ref_chosen_logps=-3.0)], [pair(ref_chosen_logps=-3.0005)]) == ({}, 1)
    assert changes([pair(ref_chosen_logps=-3.0)], [pair(ref_chosen_logps=-3.002)])[1] == 0


def test_an_answer_that_gets_another_partner_is_one_re_paired_row():
    assert changes([pair("p", "a", "b")], [pair("p", "a", "c")])[0] == {"ac": ("ab", "re-paired")}
    assert changes([pair("p", "a", "b")], [pair("p", "c", "b")])[0] == {"cb": ("ab", "re-paired")}
    assert changes([pair("p", "a", "b")], [pair("p", "b", "a", weight=2.0)])[0] == {
        "ba": ("ab", "re-paired", "re-weighted")
    }


def test_a_pair_turned_round_is_matched_before_one_that_shares_a_side():
    old, new = [pair("p", "a", "b")], [pair("p", "a", "c"), pair("p", "b", "a")]
    assert changes(old, new)[0] == {"ba": ("ab", "re-paired"), "ac": (None, "added")}


def test_pairs_that_share_no_answer_or_no_prompt_are_removed_and_added():
    assert changes([pair("p", "a", "b")], [pair("p", "c", "d")])[0] == {"ab": (None, "removed"), "cd": (None, "added")}
    assert changes([pair("p", "a", "b")], [pair("q", "a", "c")])[0] == {"ab": (None, "removed"), "ac": (None, "added")}


tables = st.lists(
    st.tuples(
        st.sampled_from("pq"), st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([1.0, 2.0])
    ).filter(lambda row: row[1] != row[2]),
    unique_by=lambda row: row[:3],
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(tables, tables)
def test_every_row_of_either_side_is_in_the_diff_once_and_backwards_it_is_the_same(old, new):
    sides = [[pair(p, p + a, p + b, weight=w) for p, a, b, w in rows] for rows in (old, new)]
    forth, unchanged = changes(*sides)
    back, _ = changes(*sides[::-1])
    gone = [row for row, (_, kind, *_) in forth.items() if kind == "removed"]
    moved = [(was, row) for row, (was, *_) in forth.items() if was]
    come = [row for row, (_, kind, *_) in forth.items() if kind == "added"]
    stayed = len(forth) - len(gone) - len(come) - len(moved)
    assert unchanged + stayed + len(gone) + len(moved) == len(old)
    assert unchanged + stayed + len(come) + len(moved) == len(new)
    assert [k for _, kinds in forth.items() for k in kinds[1:] if k not in KINDS] == []
    assert {row for row, (_, kind, *_) in back.items() if kind == "added"} == set(gone)
    assert len([row for row, (was, *_) in back.items() if was]) == len(moved)


@pytest.fixture
def rebuilt(set_aside, monkeypatch):
    """The project built again after a change of data, scale and weights."""

    def build(made):
        build_demo(made)
        made.raw([{**row, "rating": 1} if row["prompt"] == "question 3?" else row for row in ratings(13)])
        made.spec(SPEC.replace("publish:", "weigh: {weight: {category: {x: 2.0}}}\npublish:"))
        assert made.build() == 0
        assert len(made.versions) == 2

    with set_aside.copied("rebuilt", build, monkeypatch) as made:
        yield made


def told(capsys, *arguments):
    capsys.readouterr()
    assert run_command([*arguments]) == 0
    return capsys.readouterr().out


def test_two_builds_differ_in_what_was_changed(rebuilt, capsys):
    found = json.loads(told(capsys, "diff", "demo@previous", "--json"))
    old, new = (sum(found[side]["rows"].values()) for side in ("before", "after"))
    kinds = found["kinds"]
    assert old - kinds["removed"] + kinds["added"] == new
    assert kinds["added"] == 6  # the pairs of the thirteenth prompt
    assert kinds["re-weighted"] == 6 * 6  # the pairs of the prompts of category x that were there already
    assert {"name": "weigh.weight.category.x", "before": None, "after": 2.0} in found["why"]["spec"]
    assert [line["name"] for line in found["why"]["sources"]] == ["a/r.jsonl"]
    assert sum(g["rows"] for g in found["groups"] if g["kind"] == "added") == 6
    assert {line["column"]: line["factor"] for line in found["columns"]}["weight"] == 2.0
    example = found["examples"]["added"][0]
    assert example["texts"]["prompt"][0]["content"] == "question 12?"


def test_ranges_of_prompts_give_the_same_as_one_pass(rebuilt, capsys, monkeypatch):
    whole = told(capsys, "diff", "demo@previous", "--json")
    monkeypatch.setattr(module, "RANGE_ROWS", 7)
    assert json.loads(told(capsys, "diff", "demo@previous", "--json")) == json.loads(whole)


def test_all_changed_rows_are_written_where_they_are_asked_for(rebuilt, capsys):
    found = json.loads(told(capsys, "diff", "demo@previous", "--out", "changes.parquet", "--json"))
    rows = pl.read_parquet("changes.parquet")
    counted = dict(rows["kinds"].explode().value_counts().iter_rows())
    assert counted == found["kinds"]
    assert rows["prompt_id"].is_sorted()


def test_a_person_reads_the_counts_the_reasons_and_examples(rebuilt, capsys):
    shown = told(capsys, "diff", "demo@previous")
    assert "re-weighted" in shown
    assert "weigh.weight.category.x: – → 2" in shown
    assert "all by the factor 2" in shown
    assert "question 12?" in shown


def test_a_page_shows_the_same(rebuilt, capsys):
    shown = told(capsys, "diff", "demo@previous", "--html", "changes.html", "--json")
    page = Path("changes.html").read_text(encoding="utf-8")
    for kind, n in json.loads(shown)["kinds"].items():
        assert re.search(rf"<th>{kind}</th><td class=\"n\">{n}</td>", page)
    for expected in ("weigh.weight.category.x", "question 12?", "a, x", "r.jsonl"):
        assert expected in page


def test_a_snapshot_does_not_differ_from_itself(built, capsys):
    found = json.loads(told(capsys, "diff", "snapshots/demo", "demo", "--json"))
    assert (found["kinds"], found["why"], found["unchanged"]) == ({}, {}, 72)


def test_a_wrong_place_is_a_message_that_names_what_there_is(built, capfd):
    wrong = {
        ("demo@previous",): "has no previous version",
        ("dmeo",): "did you mean 'demo'?",
        ("demo@2031",): f"no version begins with '2031'; there are: {built.versions[0]}",
        ("demo", "demo", "--out", "x.csv"): "ends in .parquet",
    }
    for arguments, message in wrong.items():
        assert run_command(["diff", *arguments]) == 1
        assert message in capfd.readouterr().err


def test_snapshots_of_different_tables_are_not_compared(built, capfd):
    built.spec(
        SPEC.replace("to: paired, pairing: all", "to: unpaired, label: threshold, threshold: 0.5").replace(
            "demo", "one"
        )
    )
    assert built.build() == 0
    assert run_command(["diff", "demo", "one"]) == 1
    assert re.search(r"is paired and .* is unpaired", capfd.readouterr().err)
