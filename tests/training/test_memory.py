"""What the preflight foresees is near what a step takes, and what it refuses comes with what would fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_data.scoring.memory import preflight, shape_of, training_bytes
from rlhf_data.training.sizes import table
from tests import tiny_model

STEP = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from rlhf_data.scoring.memory import preflight
from rlhf_data.scoring.packs import Group
from rlhf_data.training.batches import Rows
from rlhf_data.training.optimizer import adamw
from rlhf_data.training.policy import checkpoint_layers
from rlhf_data.training.step import Policy, accumulate

def now(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

torch.set_num_threads(1)
config = LlamaConfig(vocab_size=6000, hidden_size=192, intermediate_size=512, num_hidden_layers=12,
                     num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
model = LlamaForCausalLM(config).eval()
if checkpointed := sys.argv[1] == "checkpointed":
    checkpoint_layers(model)
groups = [Group(list(range(n, n + 100)), [list(range(9, 60)), list(range(60, 111))]) for n in range(10)]
columns = {"weight": [1.0] * 10, "preference": [1.0] * 10,
           "ref_chosen_logps": [-300.0] * 10, "ref_rejected_logps": [-300.0] * 10}
rows = Rows([str(n) for n in range(10)], groups, [], columns, {})
optimizer = adamw(model, 0.0)
need = preflight(model, 2000, training=True, gradient_checkpointing=checkpointed)
accumulate(Policy(model, "packed", 300), rows, range(1), "dpo", {})  # what torch loads at its first step
model.zero_grad(set_to_none=True)
before = now("VmRSS")
with open("/proc/self/clear_refs", "w") as marks:
    marks.write("5")  # VmHWM starts again
for _ in range(2):
    optimizer.zero_grad(set_to_none=True)
    accumulate(Policy(model, "packed", 2000), rows, range(10), "dpo", {})
    optimizer.step()
print(json.dumps([now("VmHWM") - before, need["needed"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory")
@pytest.mark.parametrize("how", ["plain", "checkpointed"])
def test_the_estimate_is_within_a_factor_of_two_of_a_measured_step(how):
    done = subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True)
    measured, foreseen = json.loads(done.stdout)
    assert foreseen / 2 < measured < foreseen * 2, f"{measured / 2**20:.0f} MiB taken, {foreseen / 2**20:.0f} foreseen"


def test_what_is_not_trained_has_no_gradient_and_no_moments():
    model = tiny_model.model()
    whole = training_bytes(shape_of(model), 512)
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    frozen = sum(p.numel() for p in model.model.layers[0].parameters())
    part = training_bytes(shape_of(model), 512)
    assert part["weights"] == whole["weights"]
    assert whole["gradients"] - part["gradients"] == 4 * frozen
    assert whole["optimizer"] - part["optimizer"] == 8 * frozen


def test_shards_and_checkpoints_and_bfloat16_count():
    shape = shape_of(tiny_model.model())._replace(layers=32)
    plain, spared, eight, half = (
        training_bytes(shape, 4096),
        training_bytes(shape, 4096, gradient_checkpointing=True),
        training_bytes(shape, 4096, ranks=8),
        training_bytes(shape, 4096, dtype=torch.bfloat16),
    )
    assert eight["optimizer"] * 8 == plain["optimizer"] and eight["activations"] == plain["activations"]
    assert plain["activations"] > 8 * spared["activations"]
    assert plain["activations"] / 2 < half["activations"] < plain["activations"]
    assert half["weights"] == plain["weights"] and half["copies"] == plain["weights"] // 2


def test_a_refusal_names_all_that_would_fit(monkeypatch):
    model = tiny_model.model(hidden_size=128)
    spared = preflight(model, 2048, training=True, gradient_checkpointing=True)["needed"]
    monkeypatch.setattr("rlhf_data.scoring.memory.available_bytes", lambda device: spared)
    with pytest.raises(ValueError, match=r"a token_budget of \d+ would fit; gradient_checkpointing: true would fit"):
        preflight(model, 2048, training=True)
    model = tiny_model.model(hidden_size=512, vocab_size=2048)
    need = training_bytes(shape_of(model), 64)
    fixed = need["gradients"] + need["optimizer"]
    monkeypatch.setattr("rlhf_data.scoring.memory.available_bytes", lambda device: fixed)
    with pytest.raises(ValueError, match=r"shard: true over \d such devices would fit; training an adapter \(lora\)"):
        preflight(model, 64, training=True)


def test_the_page_has_the_table_that_the_preflight_makes():
    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert table() in page.read_text(encoding="utf-8")
