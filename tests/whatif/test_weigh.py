"""Weights of a whole snapshot are those that the trainer's own batches would get, from a table of the same numbers."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rlhf_data import ids, rules, tables
from rlhf_data.order import batches_from
from rlhf_data.rules import Completions, Pairs, PairWeights
from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif import Asked, parse, refused, weigh
from rlhf_data.whatif.ask import wanted
from tests.whatif import snapshots

BATCH = 16
TORCH = {"label": torch.bool, "n_tokens": torch.int64, "chosen_n_tokens": torch.int64, "rejected_n_tokens": torch.int64}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    return {"paired": snapshots.paired(folder / "p"), "unpaired": snapshots.unpaired(folder / "u")}


def moved(snapshot) -> pl.DataFrame:
    """A policy whose every log-prob is its reference's times 0.9, partners' too."""
    rows = Snapshot(snapshot).scan().collect()
    if "pair_id" in rows.columns:
        sides = [rows.select(completion_id=f"{s}_id", logps=f"ref_{s}_logps") for s in ("chosen", "rejected")]
        return pl.concat(sides).with_columns(pl.col("logps") * 0.9)
    text = dict(rows.select("completion_id", "completion").iter_rows())
    partners = ids.completion_ids(rows["prompt_id"], pl.Series([text[i] for i in rows["mismatched_id"]]))
    own = rows.select("completion_id", logps="ref_logps")
    other = pl.DataFrame({"completion_id": partners, "logps": rows["ref_mismatched_logps"]})
    return pl.concat([own, other]).with_columns(pl.col("logps") * 0.9).unique("completion_id")


def torch_batch(rows: pl.DataFrame) -> Pairs | Completions:
    kind = Pairs if "pair_id" in rows.columns else Completions
    columns: dict[str, Any] = {}
    for field in kind.__dataclass_fields__:
        source = field.replace("policy_", "ref_")
        if source in rows.columns and not rows[source].null_count():
            values = torch.tensor(rows[source].to_list(), dtype=TORCH.get(field, torch.float64))
            columns[field] = values * 0.9 if field.startswith("policy_") else values
    return kind(**columns)


SERVED = [
    name
    for name in rules.RULES
    if wanted(name, rules.table(name), moved=False) <= tables.columns(rules.table(name)).keys()
]


@pytest.mark.parametrize("rule", SERVED)
def test_every_rule_gives_what_torch_gives_batch_by_batch_as_the_trainer_draws_them(rule, published):
    snapshot = published[rules.table(rule)]
    made = weigh(snapshot, parse(rule), policy=moved(snapshot), batch_size=BATCH)
    rows = Snapshot(snapshot).scan().collect()
    key = rows.columns[0] if rows.columns[0] in made.weights.columns else made.weights.columns[0]
    size = BATCH if rules.averages_over_batch(rule) else rows.height
    labels = rows["label"].to_list() if rules.needs_both_classes(rule) else None
    batches = batches_from(
        0, rows[key].to_list(), size=size, seed=0, labels=labels, even=rules.averages_over_batch(rule)
    )
    done = 0
    while done < rows.height:
        picked = next(batches)
        done += len(picked)
        expected = rules.rule(rule)(torch_batch(rows[picked]))
        expected = expected if isinstance(expected, PairWeights) else [expected]
        for name, values in zip(made.weights.columns[2:], expected, strict=True):
            np.testing.assert_allclose(
                made.weights[name].to_numpy()[picked], values.double().numpy(), rtol=1e-9, atol=1e-12
            )


def test_dpo_at_its_reference_pushes_every_certain_pair_by_half_of_beta(published):
    made = weigh(published["paired"], parse("dpo:beta=0.2")).weights
    assert made.columns == ["pair_id", "weight", "w_chosen", "w_rejected"]
    assert (made["w_chosen"] == 0.1).all()
    assert (made["w_rejected"] == 0.1).all()


def test_several_rules_name_their_columns_and_a_rule_may_stand_twice_with_other_parameters(published):
    made = weigh(published["paired"], parse("dpo, dpo:beta=0.2")).weights
    assert made.columns[2:] == ["dpo.w_chosen", "dpo.w_rejected", "dpo:beta=0.2.w_chosen", "dpo:beta=0.2.w_rejected"]
    assert (made["dpo:beta=0.2.w_chosen"] == 2 * made["dpo.w_chosen"]).all()


def test_a_rule_for_completions_sees_a_pair_as_a_desirable_and_an_undesirable_one(published):
    made = weigh(published["paired"], parse("kto:beta=0.4:undesirable_weight=2,sft:reduction=sum,vpg"))
    rows, w = made.rows, made.weights
    assert np.allclose(w["kto:beta=0.4:undesirable_weight=2.w_chosen"], 0.1)  # β/4 at z₀ = log-ratio = 0
    assert np.allclose(w["kto:beta=0.4:undesirable_weight=2.w_rejected"], 0.2)
    assert (w["sft:reduction=sum.w_chosen"] == 1).all()
    assert (w["sft:reduction=sum.w_rejected"] == 0).all()
    assert np.allclose(w["vpg.w_chosen"], rows["chosen_reward"])
    assert np.allclose(w["vpg.w_rejected"], -rows["rejected_reward"])
    assert "trainer wants an unpaired snapshot" in made.notes[-1]


def test_a_row_of_weight_0_is_in_no_batch_and_has_no_weights(tmp_path):
    weight = [float(k % 2) for k in range(40)]
    made = weigh(
        snapshots.unpaired(tmp_path, 40, weight=weight, reward=[float(k) for k in range(40)]),
        parse("awr"),
        batch_size=40,
    )
    assert made.weights["w"].is_null().to_list() == [w == 0 for w in weight]
    assert math.isclose(made.weights["w"][1], math.exp(1 - 20))  # the mean of 1, 3, … 39


def test_the_order_of_the_batches_follows_the_seed(published):
    first, again, other = (
        weigh(published["unpaired"], parse("awr"), seed=seed).weights["w"].to_list() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rule is named"),
        ("dpoo", "did you mean 'dpo'"),
        ("dpo:beta", "write dpo:PARAMETER=VALUE"),
        ("dpo:beta=-1", "must be a finite number > 0"),
        ("dpo:betta=1", "did you mean 'beta'"),
        ("sft:reduction=none", "must be one of"),
        ("dpo,simpo,dpo", "dpo is asked for twice"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_rules_that_a_snapshot_cannot_serve_are_refused_by_name_with_what_would(tmp_path):
    bare = snapshots.paired(tmp_path / "a", scored=False, margin=[None] * 60)
    with pytest.raises(ValueError, match=r"dpo needs ref_chosen_logps, ref_rejected_logps.*add `score:`") as refusal:
        weigh(bare, parse("dpo,odpo"))
    assert len(str(refusal.value).splitlines()) >= 2
    with pytest.raises(ValueError, match="dpo weighs pairs and this snapshot holds single completions"):
        weigh(snapshots.unpaired(tmp_path / "b"), parse("dpo"))


def test_a_rule_that_reads_what_no_snapshot_holds_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("rlhf_data.whatif.ask.reads", lambda rule: frozenset({"policy_token_logps", "weight"}))
    reason = refused(Asked("dft", "kto", {}), "unpaired", ["weight"], moved=False)
    assert reason is not None
    assert reason.startswith("dft needs policy_token_logps, which no snapshot holds")


def test_all_rules_may_be_asked_for_and_those_that_are_left_out_say_why(published):
    made = weigh(published["unpaired"], None)
    assert {one.rule for one in made.asked} | set(made.left_out) == set(rules.RULES)
    assert all(rules.table(label) == "paired" or label not in SERVED for label in made.left_out)
    assert made.weights.select(pl.col(pl.Float64).is_finite().all()).row(0) == (True,) * (made.weights.width - 1)


def test_a_policy_that_lacks_a_completion_is_refused_with_the_first_of_them(published):
    with pytest.raises(ValueError, match=r"policy_chosen_logps is unknown in 60 of 60 rows"):
        weigh(published["paired"], parse("dpo"), policy=pl.DataFrame({"completion_id": ["x"], "logps": [-1.0]}))


def test_kto_over_pairs_is_refused_once_the_policy_has_moved(published):
    with pytest.raises(ValueError, match="kto needs mismatched partners"):
        weigh(published["paired"], parse("kto"), policy=moved(published["paired"]))
