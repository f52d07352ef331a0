"""Every rule trains: two steps from a tiny snapshot, whole and cut into forwards."""

import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rlhf_data import rules
from rlhf_data.order import batches_from, steps_of_epoch
from rlhf_data.scoring import models
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.training import loop, train
from rlhf_data.training.batches import Rows, read_rows, read_split
from rlhf_data.training.step import Policy, accumulate, batch
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

# Rules whose weights need the whole step, and some that need none of it.
CUT = [name for name in rules.RULES if rules.averages_over_batch(name)]
CUT += ["simpo", "odpo", "ppo", "wpo", "unlikelihood", "unlikelihood_unpaired", "ld_dpo", "seed.c_rlft"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, reference):
    with_margin = [row | {"margin": 0.5 + i} for i, row in enumerate(pairs(4))]
    rewarded = [
        row | {"reward": row["reward"] * (i + 1) - 1, "prompt_id": f"prompt-{i // 2}"}
        for i, row in enumerate(completions(4))
    ]
    made = {
        "paired": paired_snapshot(tmp_path_factory.mktemp("paired"), with_margin, reference),
        "unpaired": unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), rewarded, reference),
    }
    for rule, snapshot in (("dpo", made["paired"]), ("kto", made["unpaired"])):
        add_token_values(
            snapshot, rows_of(rule, made, models.load_tokenizer(reference, cache=tmp_path_factory.mktemp("c")))
        )
    return made


def add_token_values(snapshot, rows: Rows) -> None:
    """The reference's token log-probs, and those of another model as the policy that wrote the answers."""
    values = {}
    for who, seed in (("ref", 0), ("old", 2)):
        with torch.no_grad():
            logps = token_logps(tiny_model.model(seed), rows.groups, "packed")
        sides = ("chosen_", "rejected_") if len(logps[0]) == 2 else ("",)
        for column, side in enumerate(sides):
            values[f"{who}_{side}token_logps"] = [row[column].tolist() for row in logps]
        values[f"{who}_logps"] = [float(row[0].sum()) for row in logps]
    for path in (snapshot / "data").glob("*.parquet"):
        table = pq.read_table(path)
        for name in values.keys() - set(table.column_names):
            table = table.append_column(name, pa.array(values[name]))
        pq.write_table(table, path)


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
        groups=rules.keeps_groups(rule),
    )


@pytest.mark.parametrize("rule", CUT)
def test_a_step_of_any_rule_may_be_cut_into_forwards(rule, snapshots, reference, tmp_path):
    rows = rows_of(rule, snapshots, models.load_tokenizer(reference, cache=tmp_path))
    values = {"reduction": "token_mean"} if "reduction" in rules.parameters(rule) and rule != "rrhf_group" else {}
    steps = []
    for budget in (4096, 1):
        model = tiny_model.model(1)  # not the reference: log-ratios differ from row to row
        weights = accumulate(Policy(model, "packed", budget), rows, range(len(rows)), rule, values).weights
        flat = torch.cat(list(weights)) if isinstance(weights, tuple) else weights
        steps.append((flat, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (whole, gradient), (cut, summed) = steps
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-5 * max(1.0, float(gradient.abs().max())))


@pytest.mark.parametrize(
    "rule",
    [
        {"chosen": "beta * sigmoid(-beta * D)", "rejected": "beta * sigmoid(-beta * D)", "beta": 0.1},
        {"completion": "R - 0.5"},
        {"sum": [{"rule": "dpo", "beta": 0.1}, {"rule": "sft", "coefficient": 0.1}]},
        {"sum": [{"rule": "dpo"}, {"rule": "unlikelihood", "coefficient": 0.1}, {"rule": "dft", "coefficient": 0.5}]},
        {"sum": [{"rule": "rloo"}, {"rule": "k3", "coefficient": 0.1}]},
        "tests.rules.own_rules:twice_dpo",
    ],
    ids=["formula", "formula of completions", "sum", "sum of rows and tokens", "sum with groups", "own"],
)
def test_a_rule_in_any_form_trains(rule, snapshots, reference, tmp_path):
    manifest = train(
        snapshots[rules.table(rule)],
        tmp_path / "run",
        rule=rule,
        model=reference,
        max_length=MAX_LENGTH,
        batch_size=2,
        max_steps=2,
        cache=tmp_path / "cache",
        progress=False,
    )
    assert manifest["rule"] == rule and manifest["steps"] == 2


def test_declared_dpo_trains_the_same_bits_as_dpo(snapshots, reference, tmp_path):
    sigma = "beta * sigmoid(-beta * log_ratio_margin)"
    weights = []
    for number, rule in enumerate(("dpo", {"chosen": sigma, "rejected": sigma, "beta": 0.1})):
        run = tmp_path / str(number)
        train(
            snapshots["paired"],
            run,
            rule=rule,
            model=reference,
            max_length=MAX_LENGTH,
            batch_size=2,
            max_steps=3,
            learning_rate=1e-3,
            cache=tmp_path / "cache",
            progress=False,
        )
        weights.append((run / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("rule", ["bco", "beta_dpo_running"])
def test_what_a_rule_remembers_survives_a_kill(rule, snapshots, reference, tmp_path, monkeypatch):
    def run(name: str) -> list[dict]:
        train(
            snapshots[rules.table(rule)],
            tmp_path / name,
            rule=rule,
            model=reference,
            max_length=MAX_LENGTH,
            batch_size=2,
            epochs=2,
            learning_rate=1e-2,
            checkpoint_every=1,
            cache=tmp_path / "cache",
            progress=False,
        )
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    whole = run("whole")
    real, calls = loop._step, []

    def dies_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "_step", dies_at_the_third)
        run("killed")
    killed = run("killed")
    assert [line["memory"] for line in killed] == [line["memory"] for line in whole]
    assert len({json.dumps(line["memory"]) for line in whole}) == 4
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_token_values_of_other_tokens_are_refused(snapshots, reference, tmp_path):
    broken = tmp_path / "snapshot"
    shutil.copytree(snapshots["unpaired"], broken)
    for path in (broken / "data").glob("*.parquet"):
        table = pq.read_table(path)
        values = [row[:-1] for row in table["old_token_logps"].to_pylist()]
        at = table.column_names.index("old_token_logps")
        pq.write_table(table.set_column(at, "old_token_logps", pa.array(values)), path)
    with pytest.raises(ValueError, match=r"completion-\d has \d+ values in old_token_logps, and \d+ tokens"):
        train(broken, tmp_path / "run", rule="ppo_token", model=reference, max_length=MAX_LENGTH, cache=tmp_path)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_no_batch_parts_the_answers_to_a_prompt(sizes, size, seed):
    groups = [f"prompt-{number}" for number, k in enumerate(sizes) for _ in range(k)]
    ids = [f"answer-{i}" for i in range(len(groups))]
    steps = steps_of_epoch(ids, size=size, groups=groups)
    batches = batches_from(0, ids, size=size, seed=seed, groups=groups)
    epoch = [next(batches) for _ in range(steps)]
    assert sorted(i for batch in epoch for i in batch) == list(range(len(ids)))
    for rows in epoch:
        assert all(groups.count(groups[i]) == sum(groups[j] == groups[i] for j in rows) for i in rows)
    later = batches_from(steps // 2, ids, size=size, seed=seed, groups=groups)
    assert next(later) == [*epoch, next(batches)][steps // 2]


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
