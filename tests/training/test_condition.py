"""A policy that is told which class to write: in its prompt when it learns, and when it answers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.scoring import models
from rlhf_data.scoring.condition import class_name, conditioned, for_inference, with_classes
from rlhf_data.scoring.encode import encode, encode_prompts
from rlhf_data.training import compare, generate, train
from rlhf_data.training.batches import read_rows, read_split
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot, user

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = {"on": "label", "text": {"true": "Paris: ", "false": "sea: "}, "place": "user", "infer": "true"}
MARKED = (
    "{% for m in messages %}{{ (m.condition or '') + m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("condition")


@pytest.fixture(scope="module")
def reference(folder):
    return tiny_model.save(folder / "model")


@pytest.fixture(scope="module")
def tokenizer(folder, reference):
    return models.load_tokenizer(reference, cache=folder / "cache")


def both_ways(n):
    """Each prompt with a polite answer that is desirable and a curt one that is not."""
    rows = []
    for i, pair in enumerate(pairs(n)):
        for good in (True, False):
            row = completions(n)[i] | {"completion": "Yes, sure!" if good else "No, never.", "label": good}
            rows.append(row | {"completion_id": f"{pair['prompt_id']}-{good}", "mismatched_id": None})
    return rows


@pytest.fixture(scope="module")
def classes(folder, reference):
    rows = [{key: value for key, value in row.items() if key != "mismatched_id"} for row in both_ways(4)]
    return unscored(folder / "data", rows)


def unscored(folder, rows):
    from tests.training.snapshots import _publish

    return _publish(folder, rows, None)


@pytest.fixture(scope="module")
def trained(folder, classes, reference):
    train(
        classes, folder / "run", rule="c_rlft", parameters={"other_weight": 1.0}, model=reference, condition=LABELS,
        max_length=MAX_LENGTH, batch_size=8, epochs=25, learning_rate=3e-3, cache=folder / "cache", progress=False,
    )  # fmt: skip
    return {"path": str(folder / "run" / "model")}


def decoded(tokenizer, ids):
    return tokenizer.decode(ids)


def test_the_class_stands_in_what_is_trained_on(classes, tokenizer):
    rows = read_rows(
        read_split(classes, "train"), tokenizer, kind="unpaired", filled=("label",), soft=True, purpose="c_rlft",
        template="chat", max_length=MAX_LENGTH, max_prompt_length=None, condition=LABELS,
    )  # fmt: skip
    for group, label in zip(rows.groups, rows.columns["label"], strict=True):
        text = decoded(tokenizer, group.prompt)
        assert ("user\nParis: How do I" in text) == label and ("user\nsea: How do I" in text) != label


def test_a_policy_of_two_classes_answers_by_class(trained, folder):
    net, tokenizer = models.load(trained, cache=folder / "cache")
    asked = [user(f"How do I bake bread number {i}?") for i in range(4)]
    for name, answer in (("true", "Yes, sure!"), ("false", "No, never."), (None, "Yes, sure!")):
        prompts = for_inference(asked, trained, of=name)
        assert generate(net, tokenizer, prompts, temperature=0, max_new_tokens=8, progress=False) == [[answer]] * 4


def test_evaluation_asks_for_the_declared_class(trained, folder, reference):
    told = {"max_length": MAX_LENGTH, "cache": folder / "cache", "progress": False, "max_new_tokens": 8}
    snapshot = paired_snapshot(folder / "held-out", pairs(3), reference, scored=False)
    result = compare(snapshot, before=reference, after=trained, verifier=f"{__name__}:polite", **told)
    assert result["measures"][-1]["lines"][0]["after"]["value"] == 1
    assert all("Paris" not in sample["prompt"][0]["content"] for sample in result["samples"])


def polite(messages, completion):
    assert messages[-1]["content"].startswith("How do I")  # the verifier is asked about the prompt itself
    return float(completion == "Yes, sure!")


def test_a_run_says_what_it_was_conditioned_on(trained, folder):
    assert json.loads((folder / "run" / "manifest.json").read_text())["condition"] == LABELS
    with pytest.raises(ValueError, match="knows no class 'best'; its classes: true, false"):
        for_inference([user("?")], trained, of="best")


def test_a_model_without_classes_is_asked_as_before_and_for_no_class(reference):
    assert for_inference([user("?")], reference) == [user("?")]
    with pytest.raises(ValueError, match="trained without classes"):
        for_inference([user("?")], reference, of="true")


def test_a_rule_with_a_reference_is_refused(folder, reference):
    snapshot = unpaired_snapshot(folder / "scored", completions(), reference)
    with pytest.raises(ValueError, match="kto reads ref_logps, ref_mismatched_logps, which are of prompts without"):
        train(snapshot, folder / "kto", rule="kto", model=reference, condition=LABELS, max_length=MAX_LENGTH,
              cache=folder / "cache", progress=False)  # fmt: skip


def test_a_class_without_a_text_is_refused_with_its_name():
    told = LABELS | {"on": "category", "text": {"bread": "A", "sea": "B"}}
    with pytest.raises(ValueError, match=r"1 rows have a category without a text \(None\).*bread, sea"):
        with_classes([user("?")] * 2, ["bread", None], told)


def test_each_place_holds_the_text_once():
    turns = [*user("one"), {"role": "assistant", "content": "two"}, *user("three")]
    for place, found in (("user", 2), ("template", 2), ("system", 0)):
        made = conditioned(turns, "C ", place)
        assert [at for at, turn in enumerate(made) if "condition" in turn] == [found]
        assert "".join(turn["content"] for turn in made).count("C ") == (place != "template")
    system = [{"role": "system", "content": "be kind"}, *turns]
    assert conditioned(system, "C ", "system")[0]["content"] == "C be kind"
    assert len(conditioned(system, "C ", "system")) == len(system) == len(conditioned(turns, "C ", "system"))
    assert (class_name(False), class_name("x"), class_name(None)) == ("false", "x", None)


def test_a_template_may_write_the_class_itself(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(MARKED)
    prompts = [conditioned(user("2+2?"), text, "template") for text in ("GPT4 ", "GPT3 ")]
    made = encode_prompts(tokenizer, prompts, template=str(tmp_path / "t.jinja"), max_prompt_length=60)
    assert [decoded(tokenizer, ids) for ids in made] == [f"{t} user: 2+2?\nassistant: " for t in ("GPT4", "GPT3")]


@settings(deadline=None, max_examples=40)
@given(
    words=st.integers(0, 60), before=st.integers(0, 60), limit=st.integers(24, 50),
    place=st.sampled_from(["user", "system"]), class_text=st.sampled_from(["Paris: ", "sea "]),
)  # fmt: skip
def test_no_cut_takes_the_class_away(tokenizer, words, before, limit, place, class_text):
    turns = [*user("water " * before), {"role": "assistant", "content": "Yes"}, *user("bread " * words + "?")]
    made = encode(
        tokenizer, [conditioned(turns, class_text, place)], ["Yes"], max_length=limit + 8, max_prompt_length=limit
    )
    ids = made.prompt_ids[0]
    text = decoded(tokenizer, ids)
    assert len(ids) <= limit and text.count(class_text.strip()) == 1
    assert text.endswith("<|im_start|>assistant\n")
    plain = encode(tokenizer, [turns], ["Yes"], max_length=limit + 8, max_prompt_length=limit)
    assert made.truncated[0] or not plain.truncated[0]


def test_a_text_that_leaves_no_room_is_refused(tokenizer):
    long = conditioned(user("bread " * 50), "Mix flour, water, salt and yeast, wait, then bake it. ", "user")
    with pytest.raises(ValueError, match="the text of a class is"):
        encode_prompts(tokenizer, [long], template="chat", max_prompt_length=8)


def test_a_class_may_not_smuggle_in_a_special_token(tokenizer):
    bad = conditioned(user("?"), "<|im_end|>", "template")
    assert encode(tokenizer, [bad], ["Yes"], max_length=32).refused == ["text.special_token"]


def test_prompts_that_differ_by_class_alone_do_not_share_their_tokens(tokenizer):
    prompts = [conditioned(user("?"), text, "user") for text in ("A ", "B ")]
    made = encode(tokenizer, prompts, ["Yes", "Yes"], max_length=32)
    assert made.prompt_ids[0] != made.prompt_ids[1] and torch.equal(*map(torch.tensor, made.completion_ids))
