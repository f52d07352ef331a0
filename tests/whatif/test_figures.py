"""The figures of the page, from snapshots whose answers are known by hand."""

import json

import numpy as np
import polars as pl
import pytest

from rlhf_data.report import weights_page
from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif import Asked, parse, weigh
from rlhf_data.whatif.curves import curve, lines_at
from rlhf_data.whatif.figures import ALSO, figures, length_buckets
from tests.whatif import snapshots


def told(snapshot, text, **arguments):
    return figures(snapshot, weigh(snapshot, parse(text), also=ALSO, **arguments), split="train")


def one(found, label):
    return next(rule for rule in found["rules"] if rule["label"] == label)


def test_shares_of_groups_are_those_of_weight_times_size(tmp_path):
    # Two sources, |g| = √n · (1 − ½): 2 · ½ of the first and 4 · ½ of the second, w = reward − 0.
    n = [4, 4, 16, 16]
    snapshot = snapshots.unpaired(
        tmp_path, 4, weight=1.0, reward=[1.0, -3.0, 1.0, -3.0], label=[True] * 4, category=["x", "y", None, "x"],
        source=["a", "a", "b", "b"], n_tokens=n, ref_logps=[k * float(np.log(0.5)) for k in n],
    )  # fmt: skip
    vpg = one(told(snapshot, "vpg"), "vpg")
    shares = {line["name"]: line["mass_share"] for line in vpg["groups"]["source"]}
    assert shares == pytest.approx({"a": 4 / 12, "b": 8 / 12})
    assert {line["name"]: line["mass_share"] for line in vpg["groups"]["length"]} == pytest.approx(
        {"4–7": 1 / 3, "16–31": 2 / 3}
    )
    assert {line["name"] for line in vpg["groups"]["category"]} == {"x", "y", None}
    assert vpg["effective_rows"] == pytest.approx(12**2 / (1 + 9 + 4 + 36))
    assert vpg["half_of_mass"] == 1  # 6 of 12
    assert vpg["flips"] == {"desirable pushed down": 0.5, "undesirable pushed up": 0, "not pushed": 0}
    assert vpg["top"][0]["share"] == pytest.approx(0.5)
    assert vpg["top"][0]["w"] == -3


def test_row_weights_multiply_the_mass_and_without_token_counts_the_weights_alone_are_summed(tmp_path):
    snapshot = snapshots.unpaired(tmp_path, 2, weight=[1.0, 3.0], source=["a", "b"], scored=False, reward=[2.0, -2.0])
    found = told(snapshot, "vpg")
    assert found["predictor"]["kind"] == "weights"
    shares = {line["name"]: line["mass_share"] for line in found["rules"][0]["groups"]["source"]}
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})


def test_rules_of_one_family_agree_and_a_level_one_ranks_nothing(tmp_path):
    snapshot = snapshots.paired(tmp_path, 50)
    rows = Snapshot(snapshot).scan().collect()
    chosen = rows.select(completion_id="chosen_id", logps=pl.col("ref_chosen_logps") * 0.9)
    rejected = rows.select(completion_id="rejected_id", logps=pl.col("ref_rejected_logps") * 0.8)
    found = told(snapshot, "dpo,cdpo,ipo", policy=pl.concat([chosen, rejected]))
    agreement = {(a["one"], a["other"]): a["rank"] for a in found["agreement"]}
    assert agreement["dpo", "cdpo"] == pytest.approx(1)  # cdpo is dpo less a constant
    assert agreement["dpo", "ipo"] == pytest.approx(1)  # both fall with the margin
    still = told(snapshot, "dpo,simpo")
    assert still["agreement"][0]["rank"] is None
    assert one(still, "dpo")["effective_rows"] < 50  # its weights are level, its lengths and row weights are not


def test_lengths_are_in_powers_of_two():
    assert length_buckets(pl.Series([1, 2, 3, 4, 63, 64])).to_list() == ["1–1", "2–3", "2–3", "4–7", "32–63", "64–127"]


@pytest.mark.parametrize(
    ("rule", "clips"),
    [
        ("dpo", []),
        ("apa", []),
        ("kto", []),
        ("ppo", [np.log(0.8), np.log(1.2)]),
        ("ppo:clip_low=0.5:clip_high=1", [np.log(0.5), np.log(2)]),
        ("rrhf", [0]),
        ("hinge:beta=0.2", [5]),
        ("seed.ppo", [np.log(1.2)]),
        ("seed.rrhf", [0]),
    ],
)
def test_dpo_and_apa_let_go_softly_and_ppo_and_rrhf_are_clipped(rule, clips):
    assert curve(parse(rule)[0])["clips"] == pytest.approx(clips, abs=1e-3)


def test_a_curve_is_the_rule_itself():
    line = lines_at(Asked("dpo", "dpo", {"beta": 0.5}), np.array([-2.0, 0.0, 3.0]))
    assert line["w₊"] == pytest.approx(0.5 / (1 + np.exp([-1.0, 0, 1.5])))


@pytest.mark.parametrize("table", ["paired", "unpaired"])
def test_the_page_shows_every_rule_that_the_snapshot_can_serve(table, tmp_path):
    snapshot = {"paired": snapshots.paired, "unpaired": snapshots.unpaired}[table](tmp_path, 40)
    found = figures(snapshot, weigh(snapshot, None, also=ALSO), split="train")
    page = weights_page(found)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))
    for rule in found["rules"]:
        assert f">{rule['label']}" in page
    assert page.count("<svg") == sum(rule["curve"] is not None for rule in found["rules"])
    assert "http://" not in page
    assert "https://" not in page


def test_a_text_cannot_write_into_the_page(tmp_path):
    snapshot = snapshots.paired(tmp_path, 5, chosen="<script>alert(1)</script>", source="<b>x</b>")
    assert "<script>alert" not in weights_page(told(snapshot, "simpo"))


def test_a_snapshot_without_rows_that_count_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no row of the 3 in train has a weight above 0"):
        told(snapshots.paired(tmp_path, 3, weight=0.0), "dpo")
