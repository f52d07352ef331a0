"""Both forms of the packed attention are that of each sequence alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.scoring.attention import _attend_blocks, _attend_groups, form_of, forward_arguments
from rlhf_data.scoring.logprobs import compile_layers, token_logps
from rlhf_data.scoring.packs import Group
from tests import tiny_model

CPU = torch.device("cpu")
HEADS, KEY_HEADS, WIDTH = 4, 2, 8
group = st.builds(
    lambda prompt, completions: Group([1] * prompt, [[1] * n for n in completions]),
    st.integers(1, 9),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)


def alone(query, key, value, groups: list[Group]) -> torch.Tensor:
    """Causal attention of each prompt with each of its completions, by the definition, in float64."""
    out = torch.zeros(1, query.shape[2], HEADS, WIDTH, dtype=torch.float64)
    start = 0
    for prompt, completions in groups:
        own = start + len(prompt)
        for completion in completions:
            n = len(completion) - 1
            at = [*range(start, start + len(prompt)), *range(own, own + n)]
            own += n
            q, k, v = (tensor[0, :, at].double() for tensor in (query, key, value))
            k, v = (tensor.repeat_interleave(HEADS // KEY_HEADS, 0) for tensor in (k, v))
            scores = (q @ k.transpose(1, 2) * 0.3).masked_fill(~torch.ones(len(at), len(at)).tril().bool(), -torch.inf)
            out[0, at] = (scores.softmax(-1) @ v).transpose(0, 1)
        start = own
    return out


@pytest.mark.parametrize("form", ["rlhf_data_groups", "rlhf_data_blocks"])
@settings(deadline=None, max_examples=10)
@given(groups=st.lists(group, min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_pack_attends_as_its_sequences_do_alone(form, groups):
    torch.manual_seed(0)
    tokens = sum(len(prompt) + sum(len(one) - 1 for one in completions) for prompt, completions in groups)
    query = torch.randn(1, HEADS, tokens, WIDTH)
    key, value = torch.randn(2, 1, KEY_HEADS, tokens, WIDTH)
    attend = {"rlhf_data_groups": _attend_groups, "rlhf_data_blocks": _attend_blocks}[form]
    module = torch.nn.Module()
    ours, _ = attend(module, query, key, value, None, scaling=0.3, **forward_arguments(groups, form, CPU))
    assert ours.shape == (1, tokens, HEADS, WIDTH)
    assert ours.is_contiguous()  # layers reshape it at once
    torch.testing.assert_close(ours.double(), alone(query, key, value, groups), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_run_on_block_masks_with_the_same_log_probs():
    model = tiny_model.model()
    groups = [Group([5, 6, 7], [[8, 9, 1], [10, 1]]), Group([5, 11], [[12, 13, 14, 1]])]
    with torch.inference_mode():
        before = token_logps(model, groups, "packed")
    assert form_of(model) == "rlhf_data_groups"
    assert compile_layers(model, "packed", backend="eager")  # no compiler of C++: what is traced, as it stands
    assert form_of(model) == "rlhf_data_blocks"
    with torch.inference_mode():
        after = token_logps(model, groups, "packed")
    for one, other in zip(before, after, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_layers_that_do_not_compile_stay_as_they_were():
    model = tiny_model.model()
    assert not compile_layers(model, "packed", backend="no such compiler")
    assert form_of(model) == "rlhf_data_groups"
