"""A reference that follows the policy is measured in the step, and goes where TR-DPO says."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import rules
from rlhf_data.scoring.logprobs import layout_of
from rlhf_data.training import averaging, train
from rlhf_data.training.averaging import Moving, follow, moving, standing_in, update
from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Group, Policy, sequence_logps
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unscored(tmp_path_factory, reference):
    return paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(), reference, scored=False)


def fit(snapshot, folder, start, /, **options):
    said = {"rule": "dpo", "max_length": MAX_LENGTH, "batch_size": 4, "learning_rate": 1e-3, "epochs": 2}
    return train(snapshot, folder, model=start, cache=folder.parent / "cache", progress=False, **(said | options))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.01, 1.0), tau=st.integers(1, 4), moves=st.lists(st.floats(-2, 2, width=32), max_size=8))
def test_after_tau_steps_the_reference_is_the_share_alpha_of_the_policy(alpha, tau, moves):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    kept, expected = follow(layer, alpha=alpha, tau=tau), 1.0
    for step, move in enumerate(moves, start=1):
        layer.weight.data.add_(move)
        moved = update(kept, step)
        assert moved == (step % tau == 0)
        if moved:
            expected = alpha * layer.weight.item() + (1 - alpha) * expected
        assert kept.values[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_module_stands_in_for_its_reference_and_is_itself_again():
    model = tiny_model.model()
    policy = Policy(model, layout_of(model), 512)
    groups = [Group([5, 6], [[7, 8], [9]])]
    before = sequence_logps(policy, groups)
    kept = follow(model, alpha=1.0, tau=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = sequence_logps(policy, groups)
    with pytest.raises(RuntimeError), standing_in(kept):
        assert torch.equal(sequence_logps(policy, groups), before)
        raise RuntimeError
    assert torch.equal(sequence_logps(policy, groups), after) and not torch.equal(before, after)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"ema": 0.75}, {"alpha": 0.25, "tau": 1}),
        ({"alpha": 0.6, "tau": 512}, {"alpha": 0.6, "tau": 512}),
        ({"tau": 8}, {"alpha": 1.0, "tau": 8}),
        ({"ema": None, "alpha": 0.5, "tau": None}, {"alpha": 0.5, "tau": 1}),
    ],
)
def test_a_moving_reference_is_a_share_and_a_number_of_steps(said, meant):
    assert moving(said) == meant


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "is {ema} or {alpha, tau}, not {}"),
        ({"ema": 0.9, "tau": 2}, "is {ema} or {alpha, tau}, not"),
        ({"ema": 1.0}, "alpha is 0.0, tau 1"),
        ({"alpha": 0.5, "tau": 0}, "alpha is 0.5, tau 0"),
        ({"beta": 1}, "has no beta"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        moving(said)


def test_a_reference_that_no_rule_reads_is_refused(unscored, reference, tmp_path):
    for rule, blend in (("simpo", None), ("simpo", [{"snapshot": unscored, "rule": "simpo"}])):
        with pytest.raises(ValueError, match="no rule here reads log-probs of a reference"):
            fit(unscored, tmp_path / "run", reference, rule=rule, blend=blend, reference={"ema": 0.9})
    fit(unscored, tmp_path / "run", reference, rule="simpo", blend=[{"snapshot": unscored, "rule": "dpo"}],
        reference={"ema": 0.9}, max_steps=1)  # fmt: skip


def test_small_steps_of_coarse_numbers_and_averages_of_factors_are_refused():
    layer = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="small changes vanish"):
        follow(layer, alpha=0.01, tau=1)
    with pytest.raises(ValueError, match="not the average of their products"):
        follow(torch.nn.Linear(2, 2), alpha=0.5, tau=1, adapted=True)
    assert isinstance(follow(layer, alpha=1.0, tau=5, adapted=True), Moving)


def test_dpo_starts_at_ln_2_without_a_stored_score(unscored, reference, tmp_path):
    manifest = fit(unscored, tmp_path / "run", reference, reference={"ema": 0.5})
    first, second, *_ = lines(tmp_path / "run")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert first["reference_moved"] and second["loss"] < first["loss"]
    assert manifest["reference"] == {"alpha": 0.5, "tau": 1}


def test_a_policy_that_is_its_own_reference_at_every_step_stays_at_ln_2(unscored, reference, tmp_path):
    fit(unscored, tmp_path / "run", reference, reference={"tau": 1})
    for line in lines(tmp_path / "run"):
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-9)
        assert line["log_ratio_margin"] == pytest.approx(0, abs=1e-9)


def test_a_reference_that_never_moved_is_the_stored_one(unscored, reference, tmp_path):
    scored = paired_snapshot(tmp_path / "data", pairs(), reference)
    fit(scored, tmp_path / "stored", reference)
    for name, snapshot in (("live", unscored), ("ignored", scored)):
        fit(snapshot, tmp_path / name, reference, reference={"tau": 1000})
        for live, stored in zip(lines(tmp_path / name), lines(tmp_path / "stored"), strict=True):
            assert live["loss"] == pytest.approx(stored["loss"], abs=1e-6)
            assert live["grad_norm"] == pytest.approx(stored["grad_norm"], rel=1e-4)
            assert live["reference_moved"] is False


def test_stored_scores_that_are_wrong_are_not_read(reference, tmp_path):
    rows = [row | {"ref_chosen_logps": -50.0} for row in pairs(4)]
    wrong = paired_snapshot(tmp_path / "data", rows, reference)
    fit(wrong, tmp_path / "run", reference, reference={"ema": 0.9})
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-9)


def test_mismatched_partners_are_measured_too(reference, tmp_path):
    snapshot = unpaired_snapshot(tmp_path / "data", completions(), reference, scored=False)
    fit(snapshot, tmp_path / "run", reference, rule="kto", reference={"ema": 0.9})
    first, *_ = lines(tmp_path / "run")
    assert first["mismatched_log_ratio"] == first["log_ratio"] == pytest.approx(0, abs=1e-9)


def test_token_references_of_a_moving_reference_need_no_column():
    columns = rules.columns("ld_dpo")
    assert averaging.stored_columns(columns) == ()
    model = tiny_model.model()
    policy = Policy(model, layout_of(model), 512)
    rows = Rows(["a"], [Group([5, 6], [[7, 8], [9]])], [], {"weight": [1.0]}, {})
    seen = averaging.with_references(policy, follow(model, alpha=1.0, tau=1), rows, [0], columns)
    assert [len(values[0]) for name, values in seen.columns.items() if "token_" in name] == [2, 1]


def test_a_killed_run_goes_on_to_the_last_bit(unscored, reference, tmp_path, monkeypatch):
    options = {"epochs": 3, "checkpoint_every": 1, "reference": {"alpha": 0.3, "tau": 2}}
    fit(unscored, tmp_path / "whole", reference, **options)
    with monkeypatch.context() as patched:
        patched.setattr("rlhf_data.training.loop.accumulate", _killed_after(3))
        with pytest.raises(KeyboardInterrupt):
            fit(unscored, tmp_path / "killed", reference, **options)
    fit(unscored, tmp_path / "killed", reference, **options)
    whole, killed = (
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert whole == killed
    model = "model/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "killed" / model).read_bytes()


def _killed_after(steps):
    from rlhf_data.training.step import accumulate

    done = []

    def accumulated(*arguments, **options):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return accumulate(*arguments, **options)

    return accumulated


def test_hard_updates_work_with_an_adapter(unscored, reference, tmp_path):
    pytest.importorskip("peft")
    fit(unscored, tmp_path / "run", reference, reference={"tau": 1}, lora={"r": 2})
    assert all(line["loss"] == pytest.approx(math.log(2), abs=1e-9) for line in lines(tmp_path / "run"))
