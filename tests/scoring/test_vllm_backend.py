"""The vLLM backend reads vLLM's answers rightly; a fake that answers like it stands in for it."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from rlhf_data.scoring import vllm_backend
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from tests import tiny_model

GROUPS = [Group([5, 6, 7], [[8, 9, 1], [10]]), Group([5], [[12, 13, 14, 1]])]


class FakeLLM:
    """vLLM's `generate` with `prompt_logprobs=0`: None for the first token, then {the token: its log-prob}."""

    def __init__(self, model, *, cut: int = 0):
        self.model, self.cut = model, cut

    def generate(self, prompts, sampling_params, *, use_tqdm):
        return [self.answer(prompt["prompt_token_ids"]) for prompt in prompts]

    @torch.no_grad()
    def answer(self, ids):
        logps = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        given = [{ids[i]: SimpleNamespace(logprob=float(logps[i - 1, ids[i]]))} for i in range(1, len(ids))]
        return SimpleNamespace(prompt_logprobs=[None, *given][: len(ids) - self.cut])


def test_its_values_are_those_of_the_engine():
    model = tiny_model.model()
    theirs = vllm_backend.token_logps(FakeLLM(model), GROUPS, sampling=object())
    with torch.no_grad():
        ours = token_logps(model, GROUPS, "packed")
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert its.dtype == torch.float32
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-4)


def test_an_answer_that_lacks_tokens_is_refused():
    with pytest.raises(ValueError, match=r"log-probs of 5 tokens for a sequence of 6: raise max_model_len"):
        vllm_backend.token_logps(FakeLLM(tiny_model.model(), cut=1), GROUPS, sampling=object())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_backend_says_what_to_do():
    with pytest.raises(ValueError, match="pip install vllm"):
        vllm_backend.load("model", dtype="float32", max_length=8)
