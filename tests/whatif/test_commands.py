"""`weights` and `report --rules`, as a person calls them."""

import json

import polars as pl
import pytest

from rlhf_data.cli import run_command
from rlhf_data.rules import RULES
from rlhf_data.whatif.policy import read_policy
from tests.whatif import snapshots


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return snapshots.paired(tmp_path_factory.mktemp("published"))


def test_weights_writes_a_table_and_says_what_is_in_it(snapshot, tmp_path, capsys):
    out = tmp_path / "weights.parquet"
    assert run_command(["weights", str(snapshot), "--rules", "dpo,simpo", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "simpo" in shown
    assert "60 train" in shown
    written = pl.read_parquet(out)
    assert written.columns == [
        "pair_id",
        "weight",
        *(f"{r}.{w}" for r in ("dpo", "simpo") for w in ("w_chosen", "w_rejected")),
    ]
    assert (written["dpo.w_chosen"] - 0.05).abs().max() < 1e-15


def test_weights_takes_a_policy_from_a_table(snapshot, tmp_path, capsys):
    rows = pl.read_parquet(snapshot / "data" / "*.parquet")
    sides = [rows.select(completion_id=f"{s}_id", logps=f"ref_{s}_logps") for s in ("chosen", "rejected")]
    pl.concat(sides).write_parquet(tmp_path / "same.parquet")
    shown = []
    for more in ([], ["--policy", str(tmp_path / "same.parquet")]):
        assert run_command(["weights", str(snapshot), "--rules", "dpo", "--json", *more]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1]
    assert shown[0]["rules"]["dpo"]["w_chosen"]["mean"] == pytest.approx(0.05)


def test_all_asks_for_every_rule_and_says_which_are_left_out(snapshot, capsys):
    assert run_command(["weights", str(snapshot), "--rules", "all", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["rules"]) | set(shown["left_out"]) == set(RULES)


def test_report_writes_a_page_or_says_where_the_snapshot_s_own_is(snapshot, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert run_command(["report", str(snapshot), "--rules", "dpo,simpo,kto", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rule["label"] for rule in found["rules"]] == ["dpo", "simpo", "kto"]
    assert out.read_text().startswith("<!doctype html>")
    assert run_command(["report", str(snapshot)]) == 0
    assert capsys.readouterr().out.strip() == str(snapshot / "report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no rule is named"),
        (["--rules", "dpoo"], "did you mean 'dpo'"),
        (["--rules", "dpo", "--policy", "a", "--run", "b"], "give one of them"),
        (["--rules", "dpo", "--run", "nobody"], "no trained run of 'nobody'"),
        (["--rules", "dpo", "--split", "test"], "has no split 'test'"),
    ],
)
def test_what_cannot_be_weighed_is_refused_in_words(snapshot, arguments, message, capsys):
    assert run_command(["weights", str(snapshot), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_policy_s_table_without_its_columns_is_refused(tmp_path):
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no column completion_id, logps"):
        read_policy(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(ValueError, match="no Parquet file"):
        read_policy(tmp_path / "b.parquet")
