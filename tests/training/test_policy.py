"""Precision, checkpointed layers, compilation and determinism change speed and memory, and say what else."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from rlhf_data.scoring import models
from rlhf_data.scoring.packs import Layout
from rlhf_data.training.policy import checkpoint_layers, compile_parts, deterministically
from rlhf_data.training.settings import Settings
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import paired_snapshot, pairs
from tests.training.test_every_rule import rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    reference = tiny_model.save(tmp_path_factory.mktemp("model"))
    snapshot = paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(6), reference)
    return rows_of("dpo", {"paired": snapshot}, models.load_tokenizer(reference, cache=snapshot / "cache"))


def gradient(model, rows, *, layout: Layout = "packed", dtype=torch.float32) -> torch.Tensor:
    accumulate(Policy(model, layout, 128, dtype), rows, range(len(rows)), "dpo", {})
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_checkpointed_layers_keep_less_and_have_the_same_gradient(layout, rows):
    whole, spared = tiny_model.model(1), tiny_model.model(1)
    checkpoint_layers(spared)
    runs = []
    spared.get_submodule("model.layers.0.input_layernorm").register_forward_hook(lambda *_: runs.append(1))
    assert torch.equal(gradient(whole, rows, layout=layout), gradient(spared, rows, layout=layout))
    assert len(runs) % 2 == 0 and runs  # each forward has run twice
    assert not any(module.training for module in spared.modules() if isinstance(module, torch.nn.Dropout))


def test_a_model_with_dropout_has_none_though_its_layers_are_checkpointed(rows):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_positions=128, n_embd=32, n_layer=2, n_head=2)).eval()
    spared = copy.deepcopy(model)
    checkpoint_layers(spared)
    assert torch.equal(gradient(model, rows, layout="padded"), gradient(spared, rows, layout="padded"))


def test_layers_with_a_dropout_rate_of_their_own_have_none_though_they_are_checkpointed(rows):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    }
    model = OPTForCausalLM(OPTConfig(vocab_size=384, max_position_embeddings=128, dropout=0.5, **shape)).eval()
    spared = copy.deepcopy(model)
    checkpoint_layers(spared)
    assert torch.equal(gradient(model, rows, layout="padded"), gradient(spared, rows, layout="padded"))


def test_bfloat16_products_leave_float32_parameters_and_nearly_the_gradient(rows):
    model, rounded = tiny_model.model(1), tiny_model.model(1)
    exact, near = gradient(model, rows), gradient(rounded, rows, dtype=torch.bfloat16)
    assert near.dtype == torch.float32 and all(p.dtype == torch.float32 for p in rounded.parameters())
    assert 1e-4 < (near - exact).norm() / exact.norm() < 0.1


def test_logits_are_float32_where_the_layers_are_bfloat16(rows, monkeypatch):
    seen, mm = [], torch.mm

    def watched(left, right, *, out, **options):
        seen.append({left.dtype, right.dtype, out.dtype})
        return mm(left, right, out=out, **options)

    monkeypatch.setattr(torch, "mm", watched)
    gradient(tiny_model.model(1), rows, dtype=torch.bfloat16)
    assert seen and all(dtypes == {torch.float32} for dtypes in seen)


def test_what_is_compiled_of_a_layer_is_all_but_its_attention():
    model, compiled = tiny_model.model(1), []
    for name, module in model.named_modules():
        module.compile = lambda *, dynamic, name=name: compiled.append(name)
    compile_parts(model)
    parts = ("mlp", "input_layernorm", "post_attention_layernorm")
    assert sorted(compiled) == sorted(f"model.layers.{n}.{part}" for n in (0, 1) for part in parts)


def test_deterministic_algorithms_are_asked_for_during_a_run_alone():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministically(True):
        assert torch.are_deterministic_algorithms_enabled()
    with deterministically(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu():
    given = Settings(rule="dpo", model={"path": "m"})
    assert [given.compute_dtype(device) for device in ("cuda:3", "cpu")] == ["bfloat16", "float32"]
    assert Settings(rule="dpo", model={"path": "m"}, dtype="bfloat16").compute_dtype("cpu") == "bfloat16"


def test_what_changes_speed_alone_is_not_what_a_run_is_known_by():
    plain = Settings(rule="dpo", model={"path": "m"})
    other = Settings(
        rule="dpo", model={"path": "m"}, token_budget=9, shard=True, gradient_checkpointing=True, checkpoint_every=3
    )
    assert plain.deciding("cpu") == other.deciding("cpu")
    assert plain.deciding("cpu")["parameters"] == {"beta": 0.1}
    assert Settings(rule="dpo", model={"path": "m"}, seed=1).deciding("cpu") != plain.deciding("cpu")


def test_float16_is_refused():
    with pytest.raises(ValueError, match="dtype 'float16'"):
        Settings(rule="dpo", model={"path": "m"}, dtype="float16")
