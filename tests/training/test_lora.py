"""A low-rank adapter learns, its base stays the reference, and what is written loads anywhere."""

import json
import math
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_data.scoring import models
from rlhf_data.scoring.adapters import merged
from rlhf_data.scoring.identity import content_hash
from rlhf_data.scoring.logprobs import layout_of, token_logps
from rlhf_data.scoring.memory import preflight
from rlhf_data.scoring.packs import Group
from rlhf_data.training import adapters, metrics, train
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, paired_snapshot, pairs

peft = pytest.importorskip("peft")
GROUPS = [Group([5, 6, 7], [[8, 9], [10, 11, 12]]), Group([3, 4], [[13, 14, 15]])]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory, reference):
    return paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(), reference)


def fit(snapshot, folder, start, /, **options):
    said = {"rule": "dpo", "max_length": MAX_LENGTH, "batch_size": 4, "learning_rate": 1e-2, "lora": {"r": 4}}
    said |= {"progress": False} | options
    return train(snapshot, folder, model=start, cache=folder.parent / "cache", **said)


@pytest.fixture(scope="module")
def done(tmp_path_factory, paired, reference):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return folder, fit(paired, folder, reference, epochs=3)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logps(model):
    with torch.no_grad():
        return torch.cat([one for group in token_logps(model, GROUPS, layout_of(model)) for one in group])


def shaken(lora, seed=0):
    """The adapter with numbers in B, as if it had been trained."""
    torch.manual_seed(seed)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)


def test_the_base_is_the_reference_and_the_stored_scores_pass_the_gate(done):
    folder, manifest = done
    first, *_, last = lines(folder)
    assert manifest["first_batch_gap"] < 1e-5
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["loss"] < first["loss"] and last["accuracy"] == 1
    assert manifest["layout"] == "packed"


def test_a_fresh_adapter_changes_no_bit_of_a_log_prob():
    plain, adapted = tiny_model.model(), tiny_model.model()
    adapters.attach(adapted, r=4)
    assert torch.equal(logps(plain), logps(adapted))


def test_only_the_adapter_learns_and_memory_counts_only_that(done):
    model = tiny_model.model()
    whole = preflight(model, 128, training=True)
    adapters.attach(model, r=2)
    trained = [p for p in model.parameters() if p.requires_grad]
    # r · (inputs + outputs) of each of the seven linear layers of both blocks: 4 × 32×{32,16,16,32}, 3 × 32 and 64
    assert sum(p.numel() for p in trained) == 2 * 2 * (64 + 48 + 48 + 64 + 3 * 96)
    adapted = preflight(model, 128, training=True)
    assert adapted["gradients"] == 4 * sum(p.numel() for p in trained)
    assert adapted["optimizer"] == 2 * adapted["gradients"] < whole["optimizer"] / 4


def test_the_adapter_loads_with_stock_peft_and_the_merged_model_with_stock_transformers(done, reference):
    folder, _ = done
    base = AutoModelForCausalLM.from_pretrained(reference["path"], dtype=torch.float32).eval()
    before = logps(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, about a word of transformers
        adapted = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    assert (logps(merged) - before).abs().max() > 0.05
    assert set(load_file(folder / "model" / "model.safetensors")) == {
        n for n, _ in tiny_model.model().named_parameters()
    }


def test_a_base_with_an_adapter_is_a_model_whose_hash_is_of_both(done, reference, tmp_path):
    folder, manifest = done
    both = {**reference, "adapter": str(folder / "adapter")}
    assert content_hash(both, tmp_path) == manifest["adapted_model_hash"]
    assert len({content_hash(one, tmp_path) for one in (both, reference, {"path": str(folder / "model")})}) == 3
    loaded, _ = models.load(both, cache=tmp_path)
    merged, _ = models.load({"path": str(folder / "model")}, cache=tmp_path)
    torch.testing.assert_close(logps(loaded), logps(merged), rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_what_a_configuration_says_beside_the_weights_is_no_part_of_the_hash(done, reference, tmp_path):
    folder, manifest = done
    copy = tmp_path / "adapter"
    copy.mkdir()
    (copy / "adapter_model.safetensors").write_bytes((folder / "adapter" / "adapter_model.safetensors").read_bytes())
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    moved = {**said, "base_model_name_or_path": "elsewhere", "target_modules": said["target_modules"][::-1]}
    hashes = []
    for config in (moved, {**said, "lora_alpha": 1}):
        (copy / "adapter_config.json").write_text(json.dumps(config))
        hashes.append(content_hash({**reference, "adapter": str(copy)}, tmp_path))
    assert hashes[0] == manifest["adapted_model_hash"] != hashes[1]


def test_the_seed_alone_decides_the_first_numbers():
    def drawn(seed, noise):
        torch.manual_seed(noise)
        model = tiny_model.model()
        adapters.attach(model, r=4, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(drawn(1, 5), drawn(1, 6))
    assert not torch.equal(drawn(1, 5), drawn(2, 5))


@settings(max_examples=6, deadline=None)
@given(r=st.integers(1, 8), alpha=st.floats(1.0, 64.0), seed=st.integers(0, 99))
def test_merging_changes_log_probs_by_rounding_only(r, alpha, seed):
    model = tiny_model.model()
    lora = adapters.attach(model, r=r, alpha=alpha, seed=seed)
    shaken(lora, seed)
    adapted = logps(model)
    torch.testing.assert_close(logps(adapters.merge(lora)), adapted, rtol=1e-4, atol=2e-4)


def test_dropout_is_of_passes_that_learn_only():
    model = tiny_model.model()
    lora = adapters.attach(model, r=4, dropout=0.5)
    shaken(lora)
    assert torch.equal(logps(model), logps(model))
    torch.manual_seed(0)
    first, second = (torch.cat([o for g in token_logps(model, GROUPS, "packed") for o in g]) for _ in range(2))
    assert not torch.equal(first, second)


def test_named_targets_are_adapted_and_no_others():
    model = tiny_model.model()
    lora = adapters.attach(model, r=2, targets=["q_proj", "v_proj"])
    assert len(lora.targeted_module_names) == 4
    assert {name.rpartition(".")[2] for name in lora.targeted_module_names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, "lora has no rank; it has r, alpha, dropout, targets"),
        ({"r": 0}, "r is 0, alpha 32.0, dropout 0.0"),
        ({"targets": "q_proj"}, "write all-linear, or a list"),
        ({"targets": ["q_prj"]}, "no linear layer is named 'q_prj'; .* has down_proj, gate_proj, k_proj"),
        ({"targets": ["lm_head"]}, "lm_head is the output matrix, which takes no adapter"),
    ],
)
def test_wrong_adapters_are_refused(lora, message, paired, reference, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(paired, tmp_path / "run", reference, lora=lora)


def test_an_adapter_on_an_adapter_is_refused(done, paired, reference, tmp_path):
    both = {**reference, "adapter": str(done[0] / "adapter")}
    with pytest.raises(ValueError, match="the model has an adapter already"):
        fit(paired, tmp_path / "run", both)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"q_proj.lora_A": "other_proj.lora_A"}, "is not of .*: .* no counterpart, such as"),
        ({"layers.0.mlp.up_proj": "lm_head"}, "changes lm_head, .* embeddings are not tied"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "repeats layers"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_that_cannot_be_merged_as_it_is_is_refused(damage, message, done, tmp_path):
    copy = shutil.copytree(done[0] / "adapter", tmp_path / "adapter")
    ((old, new),) = damage.items()
    if old == "layer_replication":
        said = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(said | damage))
    else:
        weights = load_file(copy / "adapter_model.safetensors")
        renamed = {name.replace(old, new): weight for name, weight in weights.items()}
        save_file(renamed, copy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        merged(tiny_model.model(), copy)


def test_an_adapter_that_is_not_there_is_told(reference, tmp_path):
    with pytest.raises(ValueError, match=r"is no adapter: it has no adapter_model.safetensors and no adapter_config"):
        content_hash({**reference, "adapter": str(tmp_path)}, tmp_path)


def test_a_killed_run_goes_on_to_the_last_bit_and_its_checkpoints_hold_the_adapter_alone(
    paired, reference, tmp_path, monkeypatch, capsys
):
    options = {"epochs": 3, "checkpoint_every": 1, "lora": {"r": 4, "dropout": 0.3}}
    fit(paired, tmp_path / "whole", reference, **options)
    appended = []

    def killed(path, line, *, append=metrics.append):
        if len(appended) == 4:
            raise KeyboardInterrupt
        appended.append(line)
        append(path, line)

    with monkeypatch.context() as patched:
        patched.setattr("rlhf_data.training.metrics.append", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(paired, tmp_path / "killed", reference, **options)
    state = torch.load(tmp_path / "killed" / "checkpoints" / "step-4" / "state.pt", weights_only=True)
    assert all("lora_" in name for name in state["model"])
    shutil.copytree(tmp_path / "killed", tmp_path / "smaller")
    capsys.readouterr()
    fit(paired, tmp_path / "killed", reference, **options, progress=True)
    assert "whose dropout differs" not in capsys.readouterr().err
    fit(paired, tmp_path / "smaller", reference, **options, token_budget=64, progress=True)
    assert "another token_budget (2048 before, 64 now), whose dropout differs" in capsys.readouterr().err
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    told = [[{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines(tmp_path / n)]
            for n in ("whole", "killed")]  # fmt: skip
    assert told[0] == told[1]
