"""Policies are judged with an honest interval, and write the same thing when asked the same way."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.scoring import models
from rlhf_data.scoring.encode import encode_prompts
from rlhf_data.training import generate, preference_accuracy, train, verified_reward
from rlhf_data.training.evaluate import bootstrap, find_verifier, wilson
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, paired_snapshot, pairs, user

PROMPTS = [user("How do I bake bread?"), user("Sea?"), user("Write a poem about the deep blue sea, please.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def reference(folder):
    return tiny_model.save(folder / "model")


@pytest.fixture(scope="module")
def loaded(folder, reference):
    return models.load(reference, cache=folder / "cache")


def test_training_raises_the_share_of_pairs_ranked_right(folder, reference):
    snapshot = paired_snapshot(folder / "data", pairs(), reference)
    options = {"max_length": MAX_LENGTH, "cache": folder / "cache"}
    settings = options | {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3, "progress": False}
    train(snapshot, folder / "run", rule="dpo", model=reference, **settings)
    before = preference_accuracy(reference, snapshot, **options)
    after = preference_accuracy({"path": str(folder / "run" / "model")}, snapshot, **options)
    assert before["overall"]["reward"]["value"] == pytest.approx(0.5, abs=0.5)
    assert after["overall"]["reward"]["value"] == 1 and after["overall"]["n"] == 8
    assert {name: part["n"] for name, part in after["by_category"].items()} == {"bread": 5, "sea": 3}
    json.dumps(after)
    with pytest.raises(ValueError, match="max_length: scored with 64, training with 32"):
        preference_accuracy(reference, snapshot, **(options | {"max_length": 32}))


def test_without_references_only_the_likelier_answer_is_compared(folder, reference):
    snapshot = paired_snapshot(folder / "bare", pairs(), reference, scored=False)
    overall = preference_accuracy(reference, snapshot, max_length=MAX_LENGTH, cache=folder / "cache")["overall"]
    assert overall["reward"] is None and 0 <= overall["likelier"]["value"] <= 1


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_a_share_lies_in_its_interval_and_that_in_0_to_1(n, share):
    part = wilson(share * n, n)
    assert -1e-12 <= part["low"] - 1e-12 <= part["value"] <= part["high"] + 1e-12 <= 1 + 2e-12


def test_the_bootstrap_interval_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    part = bootstrap(values, seed=1)
    assert (part["high"] - part["low"]) / 2 == pytest.approx(1.96 * 2 / math.sqrt(400), rel=0.15)
    assert bootstrap(values, seed=1) == part


def test_a_verifier_judges_what_the_policy_writes(folder, reference):
    seen = []

    def count(messages, completion):
        seen.append((messages, completion))
        return float(len(completion))

    options = {"n": 2, "temperature": 1.0, "max_new_tokens": 6, "cache": folder / "cache", "progress": False}
    result = verified_reward(reference, PROMPTS, count, categories=["a", None, "a"], **options)
    assert [messages for messages, _ in seen] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert result["rewards"] == [sum(map(len, texts)) / 2 for texts in result["completions"]]
    assert result["by_category"]["a"]["n"] == 2
    again = verified_reward(reference, PROMPTS, count, baseline=result["rewards"], **options)
    assert again["overall"]["difference"] == {"value": 0, "low": 0, "high": 0}
    json.dumps(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verifier": "no.such:thing"}, "no verifier no.such:thing"),
        ({"verifier": "math"}, "module:function"),
        ({"verifier": lambda messages, text: float("nan")}, "a reward must be finite"),
        ({"baseline": [1.0]}, "baseline has 1 entries for 3 prompts"),
    ],
)
def test_a_wrong_question_is_refused(change, message, folder, reference):
    options = {"verifier": "math:fsum", "max_new_tokens": 2, "cache": folder / "cache", "progress": False} | change
    with pytest.raises(ValueError, match=message):
        verified_reward(reference, PROMPTS, **options)


def test_a_verifier_is_found_by_name():
    assert find_verifier("math:fsum") is math.fsum


def sample(loaded, prompts=PROMPTS, **options):
    return generate(*loaded, prompts, **({"max_new_tokens": 6, "progress": False} | options))


def test_the_same_seed_writes_the_same_and_another_does_not(loaded):
    assert sample(loaded, n=3, seed=1) == sample(loaded, n=3, seed=1) != sample(loaded, n=3, seed=2)
    assert [len(texts) for texts in sample(loaded, n=3)] == [3, 3, 3]


def test_greedy_answers_do_not_depend_on_their_batch(loaded):
    together = sample(loaded, temperature=0)
    assert together == [sample(loaded, [prompt], temperature=0)[0] for prompt in PROMPTS]
    assert together == sample(loaded, temperature=0, batch_size=1)


def test_greedy_takes_the_likeliest_token(loaded):
    model, tokenizer = loaded
    (ids,) = encode_prompts(tokenizer, PROMPTS[:1], template="chat", max_prompt_length=100)
    with torch.no_grad():
        token = model(torch.tensor([ids])).logits[0, -1].argmax()
    assert sample(loaded, PROMPTS[:1], temperature=0, max_new_tokens=1) == [[tokenizer.decode([token])]]


def test_sampling_leaves_the_callers_random_state_alone(loaded):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(loaded)
    assert torch.equal(torch.rand(3), expected)


def test_wrong_sampling_is_refused(loaded):
    with pytest.raises(ValueError, match="temperature is -1"):
        sample(loaded, temperature=-1)
