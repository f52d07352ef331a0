"""A reward model learns pairs, is a standard classifier once saved, and says how sure it may be."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MistralConfig,
)
from transformers import MistralForSequenceClassification as Mistral

from rlhf_data.scoring import models, rewards
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.packs import Group
from rlhf_data.training import compare, loop, train
from rlhf_data.training.batches import read_rows, read_split
from rlhf_data.training.calibration import calibration_error, log_loss, reliability
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, paired_snapshot, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

token = st.integers(3, 300)
group = st.builds(
    Group,
    st.lists(token, min_size=1, max_size=12),
    st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reward")


@pytest.fixture(scope="module")
def reference(folder):
    return tiny_model.save(folder / "model")


@pytest.fixture(scope="module")
def paired(folder, reference):
    return paired_snapshot(folder / "data", pairs(), reference, scored=False)


@pytest.fixture(scope="module")
def head(folder, reference):
    return rewards.load_reward_model(reference, head_seed=3, cache=folder / "cache")


def test_no_padding_is_what_ends_an_answer():
    held = tiny_model.tokenizer("{% for m in messages %}{{ m['content'] + '<turn>' }}{% endfor %}")
    held.add_special_tokens({"pad_token": "<turn>"})  # as in Llama 3: the template's end of turn, not the end token
    assert rewards._padding(held) == held.bos_token_id


def run(snapshot, out, reference, rule="rm", **options):
    told = {"max_length": MAX_LENGTH, "batch_size": 4, "learning_rate": 1e-3, "epochs": 4, "progress": False}
    return train(snapshot, out, rule=rule, model=reference, cache=out.parent / "cache", **(told | options))


@pytest.fixture(scope="module")
def trained(folder, paired, reference):
    run(paired, folder / "run", reference)
    return folder / "run"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@settings(deadline=None, max_examples=15)
@given(groups=st.lists(group, min_size=1, max_size=5))
def test_every_layout_scores_as_the_stock_model_does(head, layout, groups):
    model, _ = head
    with torch.no_grad():
        ours = rewards.sequence_scores(model, groups, layout)
        for (prompt, completions), scores in zip(groups, ours, strict=True):
            for completion, mine in zip(completions, scores, strict=True):
                theirs = model(torch.tensor([[*prompt, *completion]])).logits[0, 0]
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_last_token_of_a_completion_is_read(head):
    model, _ = head
    with torch.no_grad():
        one, other = rewards.sequence_scores(model, [Group([5, 6], [[7, 8], [7, 9]])], "packed")[0]
    assert abs(float(one - other)) > 1e-3


def test_the_probe_finds_the_layout_and_refuses_what_scores_in_another_way(head):
    model, _ = head
    assert rewards.layout_of_scores(model) == "packed"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=384, num_key_value_heads=2, sliding_window=4, num_labels=1, **shape)
    assert rewards.layout_of_scores(Mistral(config).eval()) == "padded"
    handle = model.score.register_forward_hook(lambda module, inputs, output: output * 2)
    try:
        with pytest.raises(ValueError, match=r"LlamaForSequenceClassification.*not supported"):
            rewards.layout_of_scores(model)
    finally:
        handle.remove()


def test_a_new_head_depends_on_its_seed_alone(folder, reference, head):
    for state, seed, same in ((1, 3, True), (2, 4, False)):
        torch.manual_seed(state)
        again, _ = rewards.load_reward_model(reference, head_seed=seed, cache=folder / "cache")
        assert torch.equal(again.score.weight, head[0].score.weight) is same


def test_a_saved_reward_model_gives_the_same_scores_in_a_stock_padded_batch(trained, folder):
    saved = trained / "model"
    ours, tokenizer = rewards.load_reward_model({"path": str(saved)}, cache=folder / "cache")
    stock = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    stock_tokenizer = AutoTokenizer.from_pretrained(saved)
    rows = pairs(3)
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    encoded = encode(tokenizer, [p for p, _ in texts], [c for _, c in texts], max_length=MAX_LENGTH)
    whole = [[*prompt, *answer] for prompt, answer in zip(encoded.prompt_ids, encoded.completion_ids, strict=True)]
    assert all(ids[-1] == stock_tokenizer.eos_token_id != stock_tokenizer.pad_token_id for ids in whole)
    batch = stock_tokenizer.pad({"input_ids": whole}, return_tensors="pt")
    groups = [Group(p, [c]) for p, c in zip(encoded.prompt_ids, encoded.completion_ids, strict=True)]
    with torch.no_grad():
        theirs = stock(**batch).logits[:, 0]
        mine = torch.stack([row[0] for row in rewards.sequence_scores(ours, groups, "packed")])
    assert stock.config.num_labels == 1
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_training_ranks_the_pairs_and_reports_scores(trained):
    first, *_, last = lines(trained)
    assert last["loss"] < first["loss"] and last["accuracy"] == 1 and last["score_margin"] > 1
    assert last["score_margin"] == pytest.approx(last["chosen_score"] - last["rejected_score"])
    assert first["grad_norm"] > 0 and set(last["by_source"]) == {"hh", "uf"}


def test_centring_draws_the_scores_of_a_pair_to_zero(paired, reference, folder):
    run(paired, folder / "centred", reference, parameters={"centre": 1.0}, epochs=15)
    sums = [abs(line["chosen_score"] + line["rejected_score"]) for line in lines(folder / "centred")]
    assert max(sums[-4:]) < 0.15 < sums[0]


def test_a_soft_pair_is_scored_as_far_apart_as_its_odds(folder, reference):
    rows = [row | {"preference": 0.75} for row in pairs(4)]
    snapshot = paired_snapshot(folder / "soft", rows, reference, scored=False)
    run(snapshot, folder / "soft-run", reference, epochs=80, schedule="constant", warmup=0.0, learning_rate=2e-3)
    assert lines(folder / "soft-run")[-1]["score_margin"] == pytest.approx(math.log(3), abs=0.1)


def test_each_rows_own_margin_counts(folder, reference):
    rows = [row | {"margin": 2.0 * (i % 2)} for i, row in enumerate(pairs(4))]
    snapshot = paired_snapshot(folder / "margins", rows, reference, scored=False)
    read = read_rows(
        read_split(snapshot, "train"), models.load_tokenizer(reference, cache=folder / "cache"), kind="paired",
        filled=("margin",), soft=True, purpose="rm_margin", template="chat", max_length=MAX_LENGTH,
        max_prompt_length=None,
    )  # fmt: skip
    model, _ = rewards.load_reward_model(reference, head_seed=0, cache=folder / "cache")
    done = accumulate(Policy(model, "packed", 4096, scores=True), read, range(4), "rm_margin", {})
    batch, weights = done.batch, done.weights
    gap = batch.chosen_score - batch.rejected_score
    torch.testing.assert_close(weights.chosen, torch.sigmoid(batch.margin - gap))


def test_how_a_step_is_cut_into_forwards_changes_nothing(paired, reference, folder):
    for name, budget in (("whole", 4096), ("cut", 1)):
        run(paired, folder / name, reference, batch_size=8, max_steps=1, token_budget=budget)
    whole, cut = lines(folder / "whole")[0], lines(folder / "cut")[0]
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)


def test_a_killed_run_ends_with_the_same_bits(paired, reference, folder, monkeypatch):
    options = {"batch_size": 2, "epochs": 2, "checkpoint_every": 2}
    run(paired, folder / "through", reference, **options)
    real, calls = loop._step, []

    def dies_at_the_fourth(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "_step", dies_at_the_fourth)
        run(paired, folder / "killed", reference, **options)
    run(paired, folder / "killed", reference, **options)
    files = [folder / name / "model" / "model.safetensors" for name in ("through", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_reward_model_may_go_on_from_a_reward_model(paired, trained, folder):
    run(paired, folder / "further", {"path": str(trained / "model")}, max_steps=1)
    assert lines(folder / "further")[0]["accuracy"] == 1


SHAPE = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 1}
TYPES = {"Qwen2": "qwen2", "Qwen3Moe": "qwen3_moe", "Mixtral": "mixtral", "GPTNeoX": "gpt_neox", "GPT2": "gpt2"}
TYPES |= {"Gemma2": "gemma2"}
FAMILIES = {
    "Qwen2": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "Gemma2": {"head_dim": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_the_pairs_and_is_saved_as_its_stock_classifier(family, paired, tmp_path):
    torch.manual_seed(0)
    said = SHAPE | {"bos_token_id": 2} | FAMILIES[family]
    start = tmp_path / "start"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(TYPES[family], **said)).save_pretrained(start)
    tiny_model.tokenizer().save_pretrained(start)
    manifest = run(paired, tmp_path / "run", {"path": str(start)}, learning_rate=3e-3, epochs=3)
    first, *_, last = lines(tmp_path / "run")
    assert last["loss"] < first["loss"] and last["accuracy"] == 1
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    assert type(stock).__name__ == f"{family}ForSequenceClassification"
    ours, _ = rewards.load_reward_model({"path": str(tmp_path / "run" / "model")}, cache=tmp_path / "cache")
    with torch.no_grad():
        mine = rewards.sequence_scores(ours, [Group([5, 6, 7], [[8, 9, 10]])], manifest["layout"])[0][0]
        torch.testing.assert_close(mine, stock(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits[0, 0], rtol=1e-4, atol=1e-5)


def test_a_family_without_a_head_for_scores_is_refused(paired, tmp_path):
    config = AutoConfig.for_model("granite", **SHAPE | {"bos_token_id": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "start")
    tiny_model.tokenizer().save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="transformers has no granite with a head for scores"):
        run(paired, tmp_path / "run", {"path": str(tmp_path / "start")})


def test_a_language_model_is_no_reward_model(folder, reference):
    with pytest.raises(ValueError, match="no reward model: train one with `rule: rm`"):
        rewards.load_reward_model(reference, cache=folder / "cache")


def test_a_rule_cannot_read_scores_and_log_probs(paired, reference, folder):
    rule = {"sum": [{"rule": "rm"}, {"rule": "simpo"}]}
    with pytest.raises(ValueError, match=r"reads the score of a reward head and .*train the two apart"):
        run(paired, folder / "both", reference, rule)


def test_evaluation_tells_accuracy_and_calibration_of_each_category(paired, reference, trained, folder):
    told = {"max_length": MAX_LENGTH, "cache": folder / "cache", "progress": False}
    after = {"path": str(trained / "model")}
    result = compare(paired, before=reference, after=after, **told)
    assert [m["name"] for m in result["measures"]] == ["reward accuracy", "reward log loss", "calibration error"]
    for measure in result["measures"]:
        assert [(line["group"], line["n"]) for line in measure["lines"]] == [(None, 8), ("bread", 5), ("sea", 3)]
        assert all(line["before"] is None and line["difference"] is None for line in measure["lines"])
    assert result["measures"][0]["lines"][0]["after"]["value"] == 1
    assert [sum(b["n"] for b in part["bins"]) for part in result["calibration"]] == [8, 5, 3]
    again = compare(paired, before=after, after=after, **told)["measures"]
    assert again[0]["lines"][0]["difference"]["value"] == 0
    with pytest.raises(ValueError, match="writes no answers"):
        compare(paired, before=reference, after=after, verifier="math:fsum", **told)
    json.dumps(result)


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated():
    odds = np.log(3) * np.ones(400)  # three times in four
    preference = np.repeat([1.0, 0.0], [300, 100])
    prompts = [str(k) for k in range(400)]
    assert calibration_error(odds, preference, prompts, 0)["value"] == pytest.approx(0, abs=1e-12)
    assert calibration_error(4 * odds, preference, prompts, 0)["value"] == pytest.approx(81 / 82 - 0.75)
    (only,) = reliability(odds, preference)
    assert (only["confidence"], only["accuracy"], only["n"]) == (pytest.approx(0.75), 0.75, 400)
    assert log_loss(np.zeros(2), np.array([1.0, 0.5])) == pytest.approx(math.log(2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(0, 1)), min_size=1, max_size=20))
def test_swapping_the_sides_of_every_pair_changes_no_calibration(rows):
    margin, preference = np.array([m for m, _ in rows]), np.array([p for _, p in rows])
    assert reliability(-margin, 1 - preference) == [pytest.approx(part) for part in reliability(margin, preference)]


def test_rewards_are_looked_up_once_they_are_known(trained, folder, paired):
    table = read_split(paired, "train")
    requests = table.select(["chosen_id", "prompt", "chosen"]).rename_columns(["completion_id", "prompt", "completion"])
    pq.write_table(requests, folder / "requests.parquet")
    told = {"store": folder / "rewards", "model": {"path": str(trained / "model")}, "max_length": MAX_LENGTH}
    told |= {"cache": folder / "cache", "progress": False}
    first = rewards.reward(folder / "requests.parquet", folder / "out.parquet", token_budget=1, shard_rows=2, **told)
    again = rewards.reward(folder / "requests.parquet", folder / "again.parquet", **told)
    assert (first["counts"]["scored"], again["counts"]["scored"], again["counts"]["reused"]) == (8, 0, 8)
    got = pq.read_table(folder / "out.parquet")
    assert got.equals(pq.read_table(folder / "again.parquet"))
    model, tokenizer = rewards.load_reward_model(told["model"], cache=folder / "cache")
    encoded = encode(tokenizer, table["prompt"].to_pylist(), table["chosen"].to_pylist(), max_length=MAX_LENGTH)
    with torch.no_grad():
        alone = [
            float(model(torch.tensor([[*p, *c]])).logits[0, 0])
            for p, c in zip(encoded.prompt_ids, encoded.completion_ids, strict=True)
        ]
    assert got["reward"].to_pylist() == pytest.approx(alone, abs=1e-4)
