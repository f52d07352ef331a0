"""One log-prob code: packed, padded and alone agree with the model's own logits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from rlhf_data.scoring.logprobs import _logit_transform, layout_of, layouts, token_logps
from rlhf_data.scoring.memory import preflight
from rlhf_data.scoring.packs import Group, plan, size
from tests import tiny_model

token = st.integers(3, 300)
group = st.builds(
    Group,
    st.lists(token, min_size=1, max_size=12),
    st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4),
)


@pytest.fixture(scope="module")
def model():
    return tiny_model.model()


def naive(model, prompt, completion) -> torch.Tensor:
    """Full logits of one sequence, log_softmax, gather."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(ids).logits[0].double().log_softmax(-1)
    rows = logps[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(completion)[:, None]).squeeze(1).float()


@pytest.mark.parametrize("layout", ["packed", "padded"])
@settings(deadline=None, max_examples=25)
@given(groups=st.lists(group, min_size=1, max_size=5))
def test_every_layout_gives_what_each_sequence_gives_alone(model, layout, groups):
    with torch.no_grad():
        ours = token_logps(model, groups, layout)
        for (prompt, completions), logps in zip(groups, ours, strict=True):
            for completion, mine in zip(completions, logps, strict=True):
                assert mine.dtype == torch.float32
                torch.testing.assert_close(mine, naive(model, prompt, completion), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_are_those_of_the_naive_loop(layout):
    model = tiny_model.model()
    groups = [Group([5, 6, 7], [[8, 9, 1], [10, 1]]), Group([5, 11], [[12, 13, 14, 1]])]

    def gradients(total: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(total, list(model.parameters())))

    ours = gradients(sum(one.sum() for logps in token_logps(model, groups, layout) for one in logps))
    theirs = gradients(sum(naive(model, prompt, one).sum() for prompt, many in groups for one in many))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@given(groups=st.lists(group, max_size=30), budget=st.integers(8, 200), layout=st.sampled_from(["packed", "padded"]))
def test_a_plan_holds_every_group_once_and_keeps_to_its_budget(groups, budget, layout):
    batches = plan(groups, budget, layout)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        if layout == "packed":
            tokens = sum(size(groups[i], layout) for i in batch)
        else:
            width = max(size(Group(groups[i].prompt, [one]), layout) for i in batch for one in groups[i].completions)
            tokens = width * sum(len(groups[i].completions) for i in batch)
        assert tokens <= budget or len(batch) == 1


def test_packs_are_nearly_full():
    groups = [Group([5] * (20 + i % 37), [[6] * (5 + i % 11), [7] * (3 + i % 7)]) for i in range(400)]
    batches = plan(groups, 512, "packed")
    tokens = sum(size(group, "packed") for group in groups)
    assert tokens / ((len(batches) - 1) * 512) > 0.97  # the last one holds what is left


def test_a_stock_model_is_packed_and_one_with_a_sliding_window_is_not(model):
    assert layout_of(model) == "packed"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=384, num_key_value_heads=2, sliding_window=4, **shape)
    assert layout_of(MistralForCausalLM(config).eval()) == "padded"


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "cohere", "granite"])
def test_other_families_agree_with_their_own_logits(family):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    elif family == "gemma2":
        sizes |= {"head_dim": 8, "final_logit_softcapping": 2.0}
    elif family == "granite":
        sizes |= {"logits_scaling": 3.0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes)
    assert layout_of(AutoModelForCausalLM.from_config(config).eval()) in ("packed", "padded")


def test_a_window_and_a_cap_of_the_text_part_of_a_larger_model_are_seen():
    told = AutoConfig.for_model("gemma2", sliding_window=16, final_logit_softcapping=30.0)
    whole = SimpleNamespace(get_text_config=lambda: told)
    assert layouts(whole) == ("padded",)
    assert _logit_transform(whole).cap == 30.0


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_rounding_hides_no_attention_that_ignores_groups(family):
    sizes = {"n_layer": 2, "n_head": 4} | (
        {"hidden_size": 32} if family == "bloom" else {"n_embd": 32, "rotary_dim": 4}
    )
    config = AutoConfig.for_model(family, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in (p for p in model.parameters() if p.ndim >= 2):
        torch.nn.init.normal_(weight, std=0.1)
    assert layout_of(model) == layout_of(model.to(torch.bfloat16)) == "padded"


def test_a_model_of_no_numbers_is_refused():
    model = tiny_model.model()
    torch.nn.init.constant_(next(model.model.layers[1].parameters()), float("nan"))
    with pytest.raises(ValueError, match=r"gives NaN or ∞ in torch\.float32"):
        layout_of(model)


def test_a_model_whose_logits_are_made_in_an_unknown_way_is_refused():
    model = tiny_model.model()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 2)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*not supported"):
        layout_of(model)


def test_what_does_not_fit_in_memory_is_refused_with_what_would(model, monkeypatch):
    need = preflight(model, 2048, training=True)
    assert need["optimizer"] == 2 * need["weights"] == 2 * need["gradients"]
    assert need["needed"] == sum(need[part] for part in ("gradients", "optimizer", "copies", "activations", "head"))
    monkeypatch.setattr("rlhf_data.scoring.memory.available_bytes", lambda device: need["needed"] - 1)
    with pytest.raises(ValueError, match="a token_budget of 2047 would fit"):
        preflight(model, 2048, training=True)
    monkeypatch.setattr("rlhf_data.scoring.memory.available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="no token_budget would fit"):
        preflight(model, 2048)
