"""A further table adds its own gradient, times its coefficient, to the same step."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rlhf_data.scoring.logprobs import layout_of
from rlhf_data.training import train
from rlhf_data.training.batches import Rows
from rlhf_data.training.beside import Beside
from rlhf_data.training.blend import Part, identify
from rlhf_data.training.step import Group, Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot
from tests.training.together import together


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory, reference):
    return paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(), reference)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory, reference):
    return unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), completions(), reference)


def fit(snapshot, folder, start, /, **options):
    said = {"rule": "dpo", "max_length": MAX_LENGTH, "batch_size": 4, "learning_rate": 1e-3, "epochs": 2}
    return train(snapshot, folder, model=start, cache=folder.parent / "cache", progress=False, **(said | options))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(folder):
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines(folder)]


def bytes_of(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


PAIRS = Rows(
    ["a", "b"],
    [Group([5, 6], [[7, 8], [9]]), Group([5, 9, 3], [[4], [8, 6, 2]])],
    [],
    {
        "weight": [1.0, 2.0],
        "preference": [1.0, 1.0],
        "ref_chosen_logps": [-9.0, -4.0],
        "ref_rejected_logps": [-5.0, -12.0],
        "source": ["s", "s"],
        "category": [None, None],
    },
    {},
)
TEXTS = Rows(
    ["x", "y", "z"],
    [Group([3], [[4, 5, 6]]), Group([8, 1], [[2]]), Group([11], [[12, 13]])],
    [],
    {"weight": [1.0, 0.5, 3.0], "source": ["t"] * 3, "category": [None] * 3},
    {},
)


def part(coefficient, rows=TEXTS, rule="sft", size=2, name="texts"):
    return Part(name, rule, {}, coefficient, size, 11, rows, None)


def gradient(policy, *actions):
    """The flat gradient that the actions leave, float64."""
    policy.model.zero_grad(set_to_none=True)
    for action in actions:
        action()
    return torch.cat([p.grad.flatten().double() for p in policy.model.parameters() if p.grad is not None])


@settings(max_examples=4, deadline=None)
@given(first=st.floats(0.01, 4.0), second=st.floats(0.01, 4.0), step=st.integers(0, 5))
def test_the_gradient_of_a_step_is_the_sum_of_the_gradients_of_its_tables(first, second, step):
    model = tiny_model.model()
    policy = Policy(model, layout_of(model), 512)
    parts = [part(first), part(second, PAIRS, "dpo", 1, "pairs")]
    main = lambda: accumulate(policy, PAIRS, [0, 1], "dpo", {"beta": 0.1})  # noqa: E731
    together = gradient(policy, main, lambda: Beside(parts=parts).accumulate(policy, step))
    alone = [
        gradient(policy, main),
        first * gradient(policy, lambda: accumulate(policy, TEXTS, parts[0].picked(step), "sft", {})),
        second * gradient(policy, lambda: accumulate(policy, PAIRS, parts[1].picked(step), "dpo", {})),
    ]
    # A float32 gradient is known to a few units in its seventh digit, of the parts where they cancel each other.
    assert (together - sum(alone)).norm() <= 3e-6 * sum(one.norm() for one in alone)


def test_a_part_is_normalised_by_its_own_row_weights(paired, unpaired, reference, tmp_path):
    rows = completions()
    heavy = unpaired_snapshot(tmp_path / "heavy", [row | {"weight": 7.0} for row in rows], reference)
    for name, snapshot in (("light", unpaired), ("weighed", heavy)):
        fit(paired, tmp_path / name, reference, blend=[{"snapshot": snapshot, "name": "texts", "rule": "sft"}])
    light, weighed = lines(tmp_path / "light")[0], lines(tmp_path / "weighed")[0]
    assert weighed["grad_norm"] == pytest.approx(light["grad_norm"], rel=1e-6)


def test_a_coefficient_of_zero_is_no_part_at_all(paired, unpaired, reference, tmp_path):
    absent = fit(paired, tmp_path / "absent", reference)
    zero = fit(paired, tmp_path / "zero", reference, blend=[{"snapshot": unpaired, "rule": "sft", "coefficient": 0.0}])
    assert untimed(tmp_path / "absent") == untimed(tmp_path / "zero")
    assert bytes_of(tmp_path / "absent") == bytes_of(tmp_path / "zero")
    assert absent["blend"] == zero["blend"] == []


def test_a_blend_is_told_in_metrics_and_manifest(paired, unpaired, reference, tmp_path):
    texts = {"snapshot": unpaired, "name": "texts", "rule": "sft", "coefficient": 0.5, "batch_size": 3}
    wanted = {"snapshot": unpaired, "name": "labels", "rule": "kto", "parameters": {"beta": 0.2}}
    manifest = fit(paired, tmp_path / "run", reference, blend=[texts, wanted])
    first, *_, last = lines(tmp_path / "run")
    assert set(first["blend"]) == {"texts", "labels"}
    assert (first["blend"]["texts"]["rows"], first["blend"]["labels"]["rows"]) == (4, 4)
    assert first["blend"]["texts"]["coefficient"] == 0.5
    assert last["blend"]["texts"]["loss"] < first["blend"]["texts"]["loss"]
    assert last["loss"] < first["loss"]
    assert manifest["blended"]["texts"] == {"rows": 8, "dropped": {}}
    assert [part["parameters"].get("beta") for part in manifest["blend"]] == [None, 0.2]
    assert [part["snapshot"] for part in manifest["blend"]] == ["snapshot-8", "snapshot-8"]


def test_each_part_has_an_order_of_its_own():
    first, second = part(1.0), Part("other", "sft", {}, 1.0, 2, 12, TEXTS, None)
    assert [first.picked(step) for step in range(9)] == [first.picked(step) for step in range(9)]
    assert [first.picked(step) for step in range(9)] != [second.picked(step) for step in range(9)]
    assert sorted(first.picked(0)) == [0, 1, 2]  # sft averages over its batch: two rows and one would be uneven


def test_every_step_of_a_part_has_both_classes_where_its_rule_asks_for_both():
    labels = [i < 3 for i in range(11)]
    rows = Rows([f"row-{i}" for i in range(11)], [], [], {"label": labels}, {})
    labelled = Part("labels", "kto", {}, 1.0, 4, 11, rows, None)
    steps = [labelled.picked(step) for step in range(4)]  # no step is short: 11 rows are two of them, of at least 4
    assert all({labels[i] for i in picked} == {True, False} for picked in steps)
    assert [sorted(steps[at] + steps[at + 1]) for at in (0, 2)] == [list(range(11))] * 2


def test_a_step_of_a_part_is_the_same_whichever_was_asked_before():
    told = part(1.0)
    inorder = [told.picked(step) for step in range(5)]
    assert [told.picked(step) for step in (4, 0, 3, 3)] == [inorder[step] for step in (4, 0, 3, 3)]


def test_a_part_with_too_few_rows_of_a_class_is_refused_by_its_name(paired, reference, tmp_path):
    rows = [row | {"label": i == 0} for i, row in enumerate(completions())]
    few = unpaired_snapshot(tmp_path / "data", rows, reference)
    with pytest.raises(ValueError, match=r"blend few: .*desirable"):
        fit(
            paired,
            tmp_path / "run",
            reference,
            blend=[{"snapshot": few, "name": "few", "rule": "kto", "batch_size": 2}],
        )


def test_the_token_ids_of_a_part_are_made_once(paired, unpaired, reference, tmp_path, monkeypatch):
    parts = [{"snapshot": unpaired, "name": "labels", "rule": "kto"}]
    fit(paired, tmp_path / "first", reference, blend=parts, epochs=1)
    monkeypatch.setattr("rlhf_data.scoring.tokens.encode", lambda *_, **__: pytest.fail("tokenised again"))
    fit(paired, tmp_path / "second", reference, blend=parts, epochs=1)
    assert untimed(tmp_path / "first") == untimed(tmp_path / "second")


def test_a_killed_run_goes_on_to_the_last_bit_with_what_its_rules_remember(
    paired, unpaired, reference, tmp_path, monkeypatch
):
    parts = [{"snapshot": unpaired, "name": "labels", "rule": "bco", "coefficient": 0.7, "batch_size": 3}]
    options = {"epochs": 3, "checkpoint_every": 1, "blend": parts}
    fit(paired, tmp_path / "whole", reference, **options)
    steps = []

    def killed(self, policy, step, *, accumulate=Beside.accumulate):
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(step)
        return accumulate(self, policy, step)

    with monkeypatch.context() as patched:
        patched.setattr(Beside, "accumulate", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(paired, tmp_path / "killed", reference, **options)
    fit(paired, tmp_path / "killed", reference, **options)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "killed")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "killed")
    assert lines(tmp_path / "whole")[-1]["blend"]["labels"]["memory"]["seen"] > 3


def beside(snapshots, folder, start):
    """A run with all that may stand beside a table; in a folder of its own, as ranks share one."""
    parts = [{"snapshot": snapshots[1], "name": "labels", "rule": "kto", "coefficient": 0.5, "batch_size": 3}]
    options = {"lora": {"r": 2}, "reference": {"tau": 2}, "blend": parts, "epochs": 3, "token_budget": 64}
    fit(snapshots[0], folder, start, **options)
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_two_ranks_train_what_one_does(paired, unpaired, reference, tmp_path):
    alone = beside((paired, unpaired), tmp_path / "alone", reference)
    for found in together(2, tmp_path / "ranks", beside, (paired, unpaired), tmp_path / "together", reference):
        for name, values in alone.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=2e-5, msg=name)
    for one, two in zip(lines(tmp_path / "alone"), lines(tmp_path / "together"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["blend"]["labels"]["loss"] == pytest.approx(one["blend"]["labels"]["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_another_blend_is_another_run(paired, unpaired, reference, tmp_path, monkeypatch):
    parts = [{"snapshot": unpaired, "name": "texts", "rule": "sft", "coefficient": 0.5}]
    with monkeypatch.context() as patched:
        patched.setattr("rlhf_data.training.run._finish", lambda *_: {})
        fit(paired, tmp_path / "run", reference, blend=parts, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"unfinished run with other arguments \(blend: was"):
        fit(paired, tmp_path / "run", reference, blend=[parts[0] | {"coefficient": 0.6}], checkpoint_every=1)


def test_a_moving_reference_serves_the_parts_too(unpaired, reference, tmp_path):
    plain = paired_snapshot(tmp_path / "data", pairs(), reference, scored=False)
    parts = [{"snapshot": plain, "name": "pairs", "rule": "dpo"}]
    fit(unpaired, tmp_path / "run", reference, rule="sft", blend=parts, reference={"tau": 1}, epochs=1)
    for line in lines(tmp_path / "run"):
        assert line["blend"]["pairs"]["log_ratio_margin"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"rule": "sft", "coefficient": -1.0}, "coefficient is -1.0, batch_size 4: they must be"),
        ({"rule": "sft", "share": 1}, "a part of a blend has no share"),
        ({"rule": "sft", "parameters": {"beta": 1}}, "sft has no parameter 'beta'"),
        ({"rule": "dpo"}, "blend it: dpo reads a snapshot of shape paired; this one has no column pair_id"),
    ],
)
def test_wrong_parts_are_refused(item, message, paired, unpaired, reference, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(paired, tmp_path / "run", reference, blend=[{"snapshot": unpaired, "name": "it"} | item])


def test_two_parts_of_one_name_are_refused(unpaired):
    one = {"snapshot": unpaired, "rule": "sft"}
    with pytest.raises(ValueError, match="two parts of the blend are named snapshot"):
        identify([one, one], batch_size=4)


def test_a_part_whose_references_are_of_other_tokens_is_refused_by_its_name(paired, unpaired, reference, tmp_path):
    wrong = [row | {"ref_chosen_logps": -50.0} for row in pairs(4)]
    bad = paired_snapshot(tmp_path / "data", wrong, reference)
    with pytest.raises(ValueError, match="blend bad: the policy starts as the reference, yet"):
        fit(unpaired, tmp_path / "run", reference, rule="sft", blend=[{"snapshot": bad, "name": "bad", "rule": "dpo"}])
