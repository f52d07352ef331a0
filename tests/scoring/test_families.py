"""Each family's log-probs are those of its own logits, packed where its attention allows, padded elsewhere."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_data.scoring.logprobs import layout_of, token_logps
from rlhf_data.scoring.packs import Group

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": (SIZES, "packed"),
    "qwen2": (SIZES, "packed"),
    "qwen3": (SIZES | {"head_dim": 8}, "packed"),
    "qwen3_moe": (SIZES | MOE | {"head_dim": 8}, "packed"),
    "mistral": (SIZES | {"sliding_window": None}, "packed"),
    "gemma": (SIZES | {"head_dim": 8}, "packed"),
    "gemma2": (SIZES | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4}, "padded"),
    "gemma3_text": (SIZES | {"head_dim": 8, "sliding_window": 4}, "padded"),
    "llama4_text": (SIZES | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2}, "padded"),
    "gpt2": (GPT, "packed"),
    "gpt_neox": (SIZES, "packed"),
    "phi": (SIZES, "packed"),
    "phi3": (SIZES, "packed"),
    "olmo2": (SIZES, "packed"),
    "granite": (SIZES | {"logits_scaling": 3.0, "embedding_multiplier": 2.0}, "packed"),
    "cohere": (SIZES | {"logit_scale": 0.25}, "packed"),
    "stablelm": (SIZES, "padded"),
    "starcoder2": (SIZES | {"sliding_window": None}, "packed"),
    "opt": ({"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, "packed"),
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, "padded"),
    "bloom": (GPT | {"hidden_size": 32}, "padded"),
}
GROUPS = [
    Group([5, 6, 7, 8, 9], [[11, 12, 13, 14, 15, 16], [17], [18, 19]]),
    Group([21], [[22, 23, 24]]),
    Group([31, 32], [[33], [34, 35, 36, 37], [38, 39, 40], [41, 42]]),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_in_its_fastest_layout_with_its_own_log_probs(family):
    sizes, expected = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=1, initializer_range=0.2, **sizes
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    layout = layout_of(model)
    assert layout == expected
    with torch.no_grad():
        ours = token_logps(model, GROUPS, layout)
        for (prompt, completions), many in zip(GROUPS, ours, strict=True):
            for completion, mine in zip(completions, many, strict=True):
                ids = torch.tensor([[*prompt, *completion]])
                logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
                theirs = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)
                torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-4)
