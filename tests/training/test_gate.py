"""References that are not the policy's are refused before the first step, naming what most likely happened."""

import json
from collections.abc import Sequence

import pytest
import torch

from rlhf_data.scoring.identity import template_hash
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.training import train
from rlhf_data.training.batches import Rows
from rlhf_data.training.gate import check_first_batch, check_tokens, first_rows
from rlhf_data.training.step import Policy
from tests import tiny_model
from tests.training import snapshots
from tests.training.snapshots import paired_snapshot, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LENGTH = 24
OURS = {"model_hash": "m", "dtype": "float32", "template_hash": "t"}
GROUPS = [Group([5 + i, 6, 7, 8, 9 + i], [[40 + i, 41, 42, 43, 44, 1], [60 + i, 61, 62, 63, 1]]) for i in range(7)]
LONG = Group(list(range(5, 21)), [list(range(30, 38)), [70, 71, 1]])  # its chosen answer fills MAX_LENGTH


def first_batch(
    scored: list[Group], *, seed: int = 0, scored_in: str = "float32", template: str = "t", groups=GROUPS
) -> float | None:
    """The gate's answer where `scored` are the sequences that the reference saw, and `groups` those of training."""
    reference = tiny_model.model(seed)
    if scored_in == "bfloat16":
        torch.nn.Module.to(reference, torch.bfloat16)
    with torch.no_grad():
        logps = [[float(one.sum()) for one in group] for group in token_logps(reference, scored, "packed")]
    columns = {"ref_chosen_logps": [one for one, _ in logps], "ref_rejected_logps": [one for _, one in logps]}
    rows = Rows([f"row-{i}" for i in range(len(groups))], list(groups), [], columns, {})
    recipe = {"model_hash": "m", "dtype": scored_in, "max_length": MAX_LENGTH, "template_hash": template}
    policy = Policy(tiny_model.model(0), "packed", 512)
    return check_first_batch(policy, rows, range(len(groups)), recipe, OURS)


def with_prompt(group: Group, prompt: Sequence[int]) -> Group:
    return Group(prompt, group.completions)


def test_equal_references_pass_in_either_dtype():
    gap = first_batch(GROUPS)
    assert gap is not None and gap < 1e-5
    gap = first_batch(GROUPS, scored_in="bfloat16")
    assert gap is not None and 1e-5 < gap < 0.05


def test_other_weights_are_the_model():
    with pytest.raises(ValueError, match="the likely cause is the model, as template and tokenizer are the same"):
        first_batch(GROUPS, seed=3)


def test_other_tokens_before_the_answer_are_the_template():
    scored = [with_prompt(group, [3, *group.prompt]) for group in GROUPS]
    with pytest.raises(ValueError, match="the likely cause is the template, as it, or the tokenizer"):
        first_batch(scored, template="another")


def test_a_little_everywhere_between_two_dtypes_is_the_dtype(monkeypatch):
    monkeypatch.setattr("rlhf_data.training.gate.TOLERANCE", {"float32": 1e-4, "bfloat16": 1e-3})
    with pytest.raises(ValueError, match=r"likely cause is the dtype.*scored in bfloat16, training in float32"):
        first_batch(GROUPS, scored_in="bfloat16")


def test_sequences_that_fill_the_length_are_truncation():
    cut = with_prompt(LONG, LONG.prompt[2:])
    with pytest.raises(ValueError, match="the likely cause is truncation, as only sequences of 24 tokens differ"):
        first_batch(
            [*GROUPS, Group(cut.prompt, LONG.completions)],
            groups=[*GROUPS, Group(LONG.prompt, [LONG.completions[0]] * 2)],
        )


def test_a_row_among_many_that_agree_was_changed_after_scoring():
    changed = Group(GROUPS[0].prompt, [[99, 98, 97, 96, 95, 1], GROUPS[0].completions[1]])
    with pytest.raises(ValueError, match=r"13 of 14 agree.*rows or their stored log-probs were changed"):
        first_batch([changed, *GROUPS[1:]])


def test_a_reference_that_is_no_number_is_refused():
    rows = Rows(["row"], GROUPS[:1], [], {"ref_chosen_logps": [float("nan")], "ref_rejected_logps": [-1.0]}, {})
    policy = Policy(tiny_model.model(0), "packed", 512)
    with pytest.raises(ValueError, match="ref_chosen_logps is nan"):
        check_first_batch(policy, rows, [0], {"model_hash": "m"}, OURS)


def test_a_policy_that_is_not_the_reference_is_not_compared():
    rows = Rows(["row"], GROUPS[:1], [], {"ref_chosen_logps": [0.0], "ref_rejected_logps": [0.0]}, {})
    policy = Policy(tiny_model.model(0), "packed", 512)
    assert check_first_batch(policy, rows, [0], {"model_hash": "other"}, OURS) is None


def test_the_scorer_and_the_trainer_know_a_template_by_the_same_digest(tmp_path):
    reference = tiny_model.save(tmp_path / "model")
    snapshot = paired_snapshot(tmp_path / "data", pairs(2), reference)
    scored = json.loads((snapshot / "manifest.json").read_text())["score"]["template_hash"]
    assert scored == template_hash(reference, "chat", tmp_path / "cache")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert scored != template_hash(reference, "chat", tmp_path / "cache")


def test_references_that_read_other_tokens_than_the_policy_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_LENGTH", 128)  # nothing is cut away
    reference, policy = tiny_model.save(tmp_path / "reference"), tiny_model.save(tmp_path / "policy")
    snapshot = paired_snapshot(tmp_path / "data", pairs(3), reference)
    recipe = json.loads((snapshot / "manifest.json").read_text())["score"]
    encoding = {"template": "chat", "max_length": 128, "max_prompt_length": None}
    few = first_rows(snapshot, "train")
    told = {"recipe": recipe, "encoding": encoding, "cache": tmp_path / "cache"}
    check_tokens(few, model=policy, **told)
    tokenizer = json.loads((tmp_path / "policy" / "tokenizer.json").read_text())
    (tmp_path / "policy" / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))  # another file, equal tokens
    check_tokens(few, model=policy, **told)
    (tmp_path / "policy" / "chat_template.jinja").write_text("{{ 'Be brief.' }}" + tiny_model.CHATML)
    with pytest.raises(ValueError, match=r"reference, which scored the references, reads 3 of 3 rows as other tokens"):
        check_tokens(few, model=policy, **told)
    with pytest.raises(ValueError, match="reads 3 of 3 rows as other tokens"):
        train(snapshot, tmp_path / "run", rule="dpo", model=policy, max_length=128, cache=tmp_path / "cache")
    assert check_tokens(few, model=policy, **(told | {"recipe": {**recipe, "model": {"path": "gone"}}})) is None
