"""Training does what the rule says, refuses what it cannot, and survives a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rlhf_data.training import train
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory, reference):
    return paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(), reference)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory, reference):
    return unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), completions(), reference)


def run(snapshot: Path, folder: Path, reference: dict, rule: str = "dpo", **options) -> dict:
    settings = {
        "max_length": MAX_LENGTH,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "cache": folder.parent / "cache",
        "progress": False,
    }
    return train(snapshot, folder, rule=rule, model=reference, **(settings | options))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_close(first: Path, second: Path, atol: float) -> None:
    for name, tensor in weights(first).items():
        torch.testing.assert_close(tensor, weights(second)[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("rule", ["dpo", "kto", "sft"])
def test_training_lowers_the_loss_of_every_rule(rule, paired, unpaired, reference, tmp_path):
    manifest = run(paired if rule == "dpo" else unpaired, tmp_path / "run", reference, rule, epochs=4)
    first, *_, last = lines(tmp_path / "run")
    assert last["loss"] < first["loss"]
    assert manifest["steps"] == len(lines(tmp_path / "run")) == 8


def test_dpo_starts_at_ln_2_and_ends_with_a_margin(paired, reference, tmp_path):
    run(paired, tmp_path / "run", reference, epochs=4)
    first, *_, last = lines(tmp_path / "run")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["w_chosen"], first["accuracy"]) == (pytest.approx(0.05, abs=1e-6), pytest.approx(0.5, abs=0.5))
    assert last["log_ratio_margin"] > 1 and last["accuracy"] == 1
    assert set(last["by_category"]) == {"bread", "sea"} and set(last["by_source"]) == {"hh", "uf"}


def test_a_run_folder_can_be_traced_and_is_not_trained_twice(paired, reference, tmp_path):
    manifest = run(paired, tmp_path / "run", reference, parameters={"beta": 0.2})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == manifest
    assert manifest["parameters"] == {"beta": 0.2} and manifest["snapshot"] == "snapshot-8"
    assert manifest["model_hash"] != manifest["trained_model_hash"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "_SUCCESS",
        "arguments.json",
        "manifest.json",
        "metrics.jsonl",
        "model",
    ]
    assert run(paired, tmp_path / "run", reference, parameters={"beta": 0.2}) == manifest


@pytest.mark.parametrize("rule", ["dpo", "kto", "sft"])
def test_how_a_step_is_cut_into_forwards_changes_nothing(rule, paired, unpaired, reference, tmp_path):
    snapshot = paired if rule == "dpo" else unpaired
    for name, budget in (("whole", 4096), ("cut", 1)):
        run(snapshot, tmp_path / name, reference, rule, batch_size=8, epochs=2, token_budget=budget, learning_rate=1e-4)
    whole, cut = lines(tmp_path / "whole")[0], lines(tmp_path / "cut")[0]
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert_close(tmp_path / "whole", tmp_path / "cut", atol=2e-5)


def test_weight_two_is_a_row_twice_and_weight_zero_no_row(reference, tmp_path):
    rows = completions(6)
    copy = rows[0] | {"completion_id": "copy"}
    heavy = [rows[0] | {"weight": 2.0}, *rows[1:]]
    light = [*rows, copy | {"weight": 0.0}]
    options = {"batch_size": 16, "max_steps": 1, "learning_rate": 1e-3}
    for rule in ("kto", "sft"):
        for name, table in (("once", rows), ("twice", [*rows, copy]), ("heavy", heavy), ("light", light)):
            snapshot = unpaired_snapshot(tmp_path / f"{rule}-{name}-data", table, reference)
            run(snapshot, tmp_path / f"{rule}-{name}", reference, rule, **options)
        norm = {name: lines(tmp_path / f"{rule}-{name}")[0] for name in ("once", "twice", "heavy", "light")}
        for a, b in (("heavy", "twice"), ("light", "once")):
            assert norm[a]["grad_norm"] == pytest.approx(norm[b]["grad_norm"], rel=1e-5)
            assert norm[a]["loss"] == pytest.approx(norm[b]["loss"], rel=1e-6)
        assert norm["heavy"]["grad_norm"] != pytest.approx(norm["once"]["grad_norm"], rel=1e-3)


def test_rows_left_out_are_counted(reference, tmp_path):
    rows = pairs(4)
    rows[0] |= {"weight": 0.0}
    rows[1] |= {"chosen": "water " * 100 + "yes", "rejected": "water " * 100 + "no"}
    manifest = run(paired_snapshot(tmp_path / "data", rows, reference), tmp_path / "run", reference)
    assert manifest["dropped"] == {"weight.zero": 1, "pair.equal_after_truncation": 1}
    assert manifest["rows"] == 2


def test_references_of_other_tokens_are_refused_before_the_first_step(paired, reference, tmp_path):
    for options, message in (
        ({"max_length": 48}, "max_length: scored with 64, training with 48"),
        ({"template": "plain"}, "template: scored with chat, training with plain"),
    ):
        with pytest.raises(ValueError, match=message):
            run(paired, tmp_path / "run", reference, **options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_references_that_are_not_the_policys_are_refused_by_the_first_batch(reference, tmp_path):
    rows = [row | {"ref_chosen_logps": -50.0} for row in pairs(4)]
    with pytest.raises(ValueError, match=r"pair-\d: ref_chosen_logps is -50.0000, now .*score the snapshot again"):
        run(paired_snapshot(tmp_path / "data", rows, reference), tmp_path / "run", reference)


def test_another_model_than_the_reference_may_be_trained(paired, tmp_path):
    other = tiny_model.save(tmp_path / "other", seed=1)
    assert run(paired, tmp_path / "run", other)["first_batch_gap"] is None


@pytest.mark.parametrize(("rule", "column"), [("dpo", "ref_chosen_logps"), ("kto", "ref_logps")])
def test_a_snapshot_without_scores_is_refused_with_the_cure(rule, column, reference, tmp_path):
    make, rows = (paired_snapshot, pairs()) if rule == "dpo" else (unpaired_snapshot, completions())
    snapshot = make(tmp_path / "data", rows, reference, scored=False)
    with pytest.raises(ValueError, match=f"{rule} needs {column}, which is empty in 8 of 8 rows.*add `score:`"):
        run(snapshot, tmp_path / "run", reference, rule)


def test_wrong_snapshots_are_refused(paired, unpaired, reference, tmp_path):
    for snapshot, rule, options, message in (
        (tmp_path / "nothing", "dpo", {}, "has no _SUCCESS"),
        (unpaired, "dpo", {}, "dpo reads a snapshot of shape paired; this one has no column pair_id"),
        (paired, "kto", {}, "kto reads a snapshot of shape unpaired"),
        (paired, "dpo", {"split": "validation"}, "has no split validation; it has: test, train"),
    ):
        with pytest.raises(ValueError, match=message):
            run(snapshot, tmp_path / "run" / rule, reference, rule, **options)


def test_soft_preferences_are_for_rules_that_honour_them(reference, tmp_path, monkeypatch):
    rows = [row | {"preference": 0.75} for row in pairs(4)]
    snapshot = paired_snapshot(tmp_path / "data", rows, reference)
    assert run(snapshot, tmp_path / "run", reference)["rows"] == 4
    monkeypatch.setattr("rlhf_data.rules.honours_preference", lambda name: False)
    with pytest.raises(ValueError, match="4 rows are soft"):
        run(snapshot, tmp_path / "other", reference)


def test_a_missing_partner_is_refused(reference, tmp_path):
    snapshot = unpaired_snapshot(tmp_path / "data", completions(), reference)
    path = snapshot / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    with pytest.raises(ValueError, match="mismatched partners are not in this split"):
        run(snapshot, tmp_path / "run", reference, "kto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {"beta": -1}}, "beta is -1"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"schedule": "step"}, "schedule 'step'"),
        ({"batch_size": 0, "warmup": 2}, "batch_size 0, warmup 2"),
    ],
)
def test_wrong_arguments_are_refused(options, message, paired, reference, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(paired, tmp_path / "run", reference, **options)


def test_a_run_folder_of_another_run_is_refused(paired, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_data.training.run._finish", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(paired, tmp_path / "run", reference, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"other arguments \(seed: was 0, is 1\)"):
        run(paired, tmp_path / "run", reference, seed=1)


def test_a_gradient_that_is_no_number_stops_the_run_with_the_rows(paired, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *a: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match=r"gradient norm nan.*these rows: pair-\d, pair-\d"):
        run(paired, tmp_path / "run", reference)


def test_the_seed_decides_the_order(paired, reference, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(paired, tmp_path / name, reference, seed=seed, batch_size=2, max_steps=3)
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(tensor, weights(tmp_path / "b")[name])
    assert any(
        not torch.equal(tensor, weights(tmp_path / "c")[name]) for name, tensor in weights(tmp_path / "a").items()
    )


@pytest.mark.parametrize(
    ("rule", "options"),
    [("dpo", {}), ("bco", {"token_budget": 40, "gradient_checkpointing": True, "deterministic": True})],
    ids=["dpo", "bco, which remembers, in several forwards"],
)
def test_a_killed_run_ends_with_the_same_bits(rule, options, paired, unpaired, reference, tmp_path):
    options = {"epochs": 6, "batch_size": 2, "checkpoint_every": 3} | options
    snapshot = paired if rule == "dpo" else unpaired
    run(snapshot, tmp_path / "whole", reference, rule, **options)
    code = f"""
import sys, time
from pathlib import Path
from rlhf_data.training import loop, train
real = loop._step
loop._step = lambda *a: (time.sleep(0.1), real(*a))[1]
train(Path({str(snapshot)!r}), Path({str(tmp_path / "killed")!r}), rule={rule!r}, model={reference!r},
      max_length={MAX_LENGTH}, learning_rate=1e-3, cache=Path({str(tmp_path / "cache")!r}), **{options!r})
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "killed" / "checkpoints" / "step-9").is_dir():
        assert trainer.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    # The kill may fall between the newest checkpoint and the removal of the oldest.
    assert len(list((tmp_path / "killed" / "checkpoints").glob("step-*"))) in (2, 3)
    run(snapshot, tmp_path / "killed", reference, rule, **options)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "killed")[name]), name
    timeless = [[{**line, "tokens_per_second": 0} for line in lines(tmp_path / name)] for name in ("whole", "killed")]
    assert timeless[0] == timeless[1]
