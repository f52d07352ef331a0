"""Every rule trains: two steps from a tiny snapshot, whole and cut into forwards."""

import json
import math

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_data import rules
from rlhf_data.scoring import models
from rlhf_data.scoring.logprobs import Group
from rlhf_data.training import train
from rlhf_data.training.batches import Rows, read_rows, read_split
from rlhf_data.training.step import Policy, accumulate, batch
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

# Rules whose weights need the whole step, and some that need none of it.
CUT = [name for name in rules.RULES if rules.averages_over_batch(name)] + ["simpo", "odpo", "ppo", "seed.c_rlft"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, reference):
    with_margin = [row | {"margin": 0.5 + i} for i, row in enumerate(pairs(4))]
    rewarded = [row | {"reward": row["reward"] * (i + 1) - 1} for i, row in enumerate(completions(4))]
    return {
        "paired": paired_snapshot(tmp_path_factory.mktemp("paired"), with_margin, reference),
        "unpaired": unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), rewarded, reference),
    }


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_trains(rule, snapshots, reference, tmp_path):
    run = tmp_path / "run"
    manifest = train(
        snapshots[rules.table(rule)],
        run,
        rule=rule,
        model=reference,
        max_length=MAX_LENGTH,
        batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        cache=tmp_path.parent / "cache",
        progress=False,
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert manifest["steps"] == len(lines) == 2
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert max(line["grad_norm"] for line in lines) > 0


def rows_of(rule: str, snapshots, tokenizer: PreTrainedTokenizerBase) -> Rows:
    return read_rows(
        read_split(snapshots[rules.table(rule)], "train"),
        tokenizer,
        kind=rules.table(rule),
        filled=rules.columns(rule),
        soft=True,
        purpose=rule,
        template="chat",
        max_length=MAX_LENGTH,
        max_prompt_length=None,
    )


@pytest.mark.parametrize("rule", CUT)
def test_a_step_of_any_rule_may_be_cut_into_forwards(rule, snapshots, reference, tmp_path):
    rows = rows_of(rule, snapshots, models.load_tokenizer(reference, cache=tmp_path))
    values = {"reduction": "token_mean"} if rule in ("sft", "c_rlft", "cpo", "rpo") else {}
    steps = []
    for budget in (4096, 1):
        model = tiny_model.model(1)  # not the reference: log-ratios differ from row to row
        _, weights, _ = accumulate(Policy(model, "packed", budget), rows, range(len(rows)), rule, values)
        flat = torch.cat(list(weights)) if isinstance(weights, tuple) else weights
        steps.append((flat, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (whole, gradient), (cut, summed) = steps
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_a_batch_knows_the_lengths_of_both_sides():
    groups = [Group([1, 2], [[3, 4, 5], [6]]), Group([1], [[2], [3, 4]])]
    rows = Rows(["a", "b"], groups, [], {"weight": [1.0, 1.0], "margin": [0.5, 2.0]}, {})
    made = batch(rows, [1, 0], torch.zeros(2, 2), None)
    assert made.chosen_n_tokens.tolist() == [1, 3] and made.rejected_n_tokens.tolist() == [2, 1]
    assert made.margin.tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    ("rule", "column", "cure"),
    [("odpo", "margin", "pair rated answers"), ("apa", "reward", "rate the answers")],
)
def test_an_empty_column_is_refused_with_the_cure(rule, column, cure, reference, tmp_path):
    make, rows = (paired_snapshot, pairs(2)) if rule == "odpo" else (unpaired_snapshot, completions(2))
    empty = [row | {column: 1.0 if i else None} for i, row in enumerate(rows)]
    snapshot = make(tmp_path / "data", empty, reference)
    with pytest.raises(ValueError, match=f"{rule} needs {column}, which is empty in 1 of 2 rows.*{cure}"):
        train(snapshot, tmp_path / "run", rule=rule, model=reference, max_length=MAX_LENGTH, cache=tmp_path / "cache")
