"""Policies are judged with an honest interval, and write the same thing when asked the same way."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.scoring import models
from rlhf_data.scoring.encode import encode_prompts
from rlhf_data.scoring.rewards import reward
from rlhf_data.training import compare, generate, train
from rlhf_data.training.evaluate import answers, bootstrap, find_verifier, verified, wins
from rlhf_data.training.judges import open_judge
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, MESSAGES, paired_snapshot, pairs, user

REWARDS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3)
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
    after = {"path": str(folder / "run" / "model")}
    result = compare(snapshot, before=reference, after=after, split="test", **options, progress=False)
    likelier, implicit = (measure["lines"] for measure in result["measures"])
    assert [(line["group"], line["n"]) for line in likelier] == [(None, 8), ("bread", 5), ("sea", 3)]
    assert likelier[0]["difference"]["value"] == likelier[0]["after"]["value"] - likelier[0]["before"]["value"] >= 0
    assert implicit[0]["after"]["value"] == 1 and implicit[0]["before"] is None
    json.dumps(result)
    with pytest.raises(ValueError, match="max_length: scored with 64, training with 32"):
        compare(snapshot, before=reference, after=after, **(options | {"max_length": 32}), progress=False)


def test_without_references_only_the_likelier_answer_is_compared(folder, reference):
    snapshot = paired_snapshot(folder / "bare", pairs(), reference, scored=False)
    options = {"max_length": MAX_LENGTH, "cache": folder / "cache", "progress": False}
    (only,) = compare(snapshot, before=reference, after=reference, by=None, **options)["measures"]
    assert only["lines"][0]["difference"] == {"value": 0, "low": 0, "high": 0} and len(only["lines"]) == 1


def test_the_bootstrap_interval_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    prompts = [str(k) for k in range(400)]
    part = bootstrap(values, prompts, seed=1)
    assert (part["high"] - part["low"]) / 2 == pytest.approx(1.96 * 2 / math.sqrt(400), rel=0.15)
    assert bootstrap(values, prompts, seed=1) == part


def test_values_of_one_prompt_count_once_in_the_interval():
    values = np.random.default_rng(0).normal(0, 1, 50)
    alone = bootstrap(values, [str(k) for k in range(50)], seed=1)
    repeated = bootstrap(np.repeat(values, 6), [str(k) for k in range(50) for _ in range(6)], seed=1)
    assert repeated == pytest.approx(alone)


def test_a_prompt_that_cannot_be_encoded_is_left_out_and_counted(folder, reference):
    rows = pairs()
    rows[0]["prompt"] = user("<|im_end|> What?")
    snapshot = paired_snapshot(folder / "refused", rows, reference, scored=False)
    options = {"max_length": MAX_LENGTH, "max_new_tokens": 2, "cache": folder / "cache", "progress": False}
    result = compare(snapshot, before=reference, after=reference, verifier=f"{__name__}:length", **options)
    assert result["left_out"] == {"text.special_token": 1}
    assert [measure["lines"][0]["n"] for measure in result["measures"]] == [7, 7, 7]


def test_a_models_own_sampling_settings_do_not_change_what_is_sampled(loaded):
    plain = sample(loaded, n=2, seed=3)
    model, _ = loaded
    model.generation_config.repetition_penalty = 5.0
    try:
        assert sample(loaded, n=2, seed=3) == plain and model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = None


def test_a_verifier_judges_what_the_policy_writes(folder, reference):
    seen = []

    def count(messages, completion):
        seen.append((messages, completion))
        return float(len(completion))

    options = {"n": 2, "temperature": 1.0, "max_new_tokens": 6, "cache": folder / "cache", "progress": False}
    written = answers(reference, PROMPTS, dtype="auto", **options)
    assert verified(count, PROMPTS, written).tolist() == [[len(text) for text in texts] for texts in written]
    assert [messages for messages, _ in seen] == [prompt for prompt in PROMPTS for _ in range(2)]
    with pytest.raises(ValueError, match="a reward must be finite"):
        verified(lambda messages, text: float("nan"), PROMPTS, written)


@pytest.fixture(scope="module")
def judge(folder, reference):
    """A trained reward model."""
    snapshot = paired_snapshot(folder / "judged", pairs(), reference, scored=False)
    told = {"max_length": MAX_LENGTH, "batch_size": 4, "learning_rate": 1e-3, "epochs": 4, "progress": False}
    train(snapshot, folder / "judge", rule="rm", model=reference, cache=folder / "cache", **told)
    return {"path": str(folder / "judge" / "model")}


def test_a_reward_model_that_judges_gives_the_rewards_that_it_rates_data_with(folder, judge):
    rows = pairs(3)
    texts = [[row["chosen"], row["rejected"]] for row in rows]
    prompts = [*(row["prompt"] for row in rows), user("<|im_end|> What?")]
    judged = open_judge(judge, dtype="auto", token_budget=None, cache=folder / "cache")
    given, codes = judged(prompts, [*texts, ["one", "two"]])
    assert codes == [None, None, None, "text.special_token"] and np.isnan(given[3]).all()
    flat = [(f"{k}/{side}", row["prompt"], row[side]) for k, row in enumerate(rows) for side in ("chosen", "rejected")]
    names, asked, written = zip(*flat, strict=True)
    requests = {"completion_id": list(names), "prompt": pa.array(asked, MESSAGES), "completion": list(written)}
    pq.write_table(pa.table(requests), folder / "requests.parquet")
    options = {"max_length": MAX_LENGTH, "cache": folder / "cache", "progress": False}
    reward(folder / "requests.parquet", folder / "rewards.parquet", store=folder / "store", model=judge, **options)
    stored = pq.read_table(folder / "rewards.parquet")["reward"].to_numpy()
    np.testing.assert_allclose(given[:3].ravel(), stored, rtol=0, atol=1e-5)


def test_a_reward_model_judges_beside_a_verifier_or_alone(folder, reference, judge):
    rows = pairs()
    snapshot = paired_snapshot(folder / "both", rows, reference, scored=False)
    options = {"max_length": MAX_LENGTH, "max_new_tokens": 4, "cache": folder / "cache", "progress": False}
    options |= {"before": reference, "after": reference, "samples": 2, "temperature": 1.0}
    alone = compare(snapshot, reward_model=judge, **options)
    both = compare(snapshot, reward_model=judge, verifier=f"{__name__}:length", **options)
    names = [one["name"] for one in both["measures"]]
    assert names[1:] == ["reward model reward", "win rate by reward model", "verifier reward", "win rate"]
    assert alone["measures"] == both["measures"][:3]
    scored, won = alone["measures"][1:]
    assert [(line["group"], line["n"]) for line in won["lines"]] == [(None, 8), ("bread", 5), ("sea", 3)]
    # The model before and the model after are one, and so are their draws: two answers meet the same two.
    assert won["lines"][0]["after"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert scored["lines"][0]["difference"] == {"value": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match="is no reward model, so it judges nothing"):
        compare(snapshot, reward_model=reference, **options)
    with pytest.raises(ValueError, match="leave verifier and reward_model out"):
        compare(snapshot, **(options | {"before": judge, "after": judge, "reward_model": judge}))


def test_a_verifier_is_a_measure_with_samples_to_look_at(folder, reference):
    snapshot = paired_snapshot(folder / "verified", pairs(), reference, scored=False)
    options = {"max_length": MAX_LENGTH, "max_new_tokens": 4, "cache": folder / "cache", "progress": False}
    verifier = f"{__name__}:length"
    result = compare(snapshot, before=reference, after=reference, verifier=verifier, prompts=3, **options)
    reward, won = result["measures"][-2:]
    assert won["name"] == "win rate" and won["lines"][0]["after"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert won["lines"][0]["before"] is None
    assert reward["name"] == "verifier reward" and reward["lines"][0]["n"] == 3 == len(result["samples"])
    assert all(s["before"] == s["after"] and s["after_reward"] == len(s["after"]) for s in result["samples"])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(REWARDS, REWARDS), min_size=1, max_size=5))
def test_one_side_wins_what_the_other_loses_and_every_answer_meets_every_other(rewards):
    before, after = (np.asarray([row[side] for row in rewards]) for side in (0, 1))
    won = wins(before, after)
    np.testing.assert_allclose(won + wins(after, before), 1)
    for row, share in enumerate(won):
        met = [(a > b) + (a == b) / 2 for a in after[row] for b in before[row]]
        assert share == pytest.approx(sum(met) / len(met))


def length(messages, completion):
    return float(len(completion))


@pytest.mark.parametrize("name", ["no.such:thing", "math", "math:pi"])
def test_a_verifier_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}"):
        find_verifier(name)


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
