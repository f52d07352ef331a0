"""Scores are computed once and looked up ever after; a kill costs one shard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM
from trl.trainer.utils import selective_log_softmax

from rlhf_data.scoring import models, score
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.recipe import NUMERICS
from rlhf_data.scoring.store import ScoreStore
from rlhf_data.scoring.workers import claims_of
from tests import tiny_model

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


def rows(prompts: int, answers: int = 2, start: int = 0) -> list[dict]:
    return [
        {
            "completion_id": f"{i}-{j}",
            "prompt": [{"role": "user", "content": f"What is {'very ' * (i % 5)}{i}?"}],
            "completion": f"The sea, {'water, ' * j}{i}",
        }
        for i in range(start, start + prompts)
        for j in range(answers)
    ]


def write(path: Path, requests: list[dict]) -> Path:
    columns = {name: [row[name] for row in requests] for name in ("completion_id", "prompt", "completion")}
    pq.write_table(pa.table(columns | {"prompt": pa.array(columns["prompt"], MESSAGES)}), path)
    return path


def run(folder: Path, requests: list[dict], reference: dict, **options) -> tuple[dict, list[dict]]:
    out = folder / "out.parquet"
    settings = {"store": folder / "store", "cache": folder / "cache", "max_length": 96, "progress": False}
    recipe = score(write(folder / "in.parquet", requests), out, model=reference, **(settings | options))
    return recipe, pq.read_table(out).to_pylist()


def logps(result: tuple[dict, list[dict]]) -> dict[str, float]:
    return {row["completion_id"]: row["logps"] for row in result[1]}


def test_scores_are_those_of_a_naive_loop_and_of_trl(reference, tmp_path):
    _, scored = run(tmp_path, rows(4), reference)
    model, tokenizer = models.load(reference, cache=tmp_path / "cache")
    for row, given in zip(scored, rows(4), strict=True):
        encoded = encode(tokenizer, [given["prompt"]], [given["completion"]], max_length=96)
        prompt, completion = encoded.prompt_ids[0], encoded.completion_ids[0]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        targets = torch.tensor(completion)
        naive = logits.double().log_softmax(-1).gather(1, targets[:, None]).sum()
        assert row["logps"] == pytest.approx(float(naive), abs=1e-4)
        assert row["logps"] == pytest.approx(float(selective_log_softmax(logits, targets).double().sum()), abs=1e-4)
        assert row["n_tokens"] == len(completion)


def test_the_answer_is_in_the_order_of_the_question_one_row_an_id(reference, tmp_path):
    asked = [*rows(3), *rows(1)][::-1]
    recipe, scored = run(tmp_path, asked, reference)
    assert [row["completion_id"] for row in scored] == list(dict.fromkeys(row["completion_id"] for row in asked))
    assert (recipe["counts"]["requested"], recipe["counts"]["distinct"]) == (8, 6)


@pytest.mark.parametrize("token_budget", [1, 40, 4096])
def test_neither_order_nor_batch_size_changes_a_score(reference, tmp_path, token_budget):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    expected = logps(run(tmp_path / "a", rows(6, 3), reference))
    got = logps(run(tmp_path / "b", rows(6, 3)[::-1], reference, token_budget=token_budget))
    assert got == pytest.approx(expected, abs=1e-4)


def test_what_is_known_needs_neither_model_nor_tokenizer(reference, tmp_path, monkeypatch):
    first, before = run(tmp_path, rows(4), reference)
    assert (first["counts"]["scored"], first["counts"]["reused"]) == (8, 0)
    monkeypatch.setattr(models, "load", None)
    monkeypatch.setattr(models, "load_tokenizer", None)
    second, after = run(tmp_path, rows(4), reference)
    assert (second["counts"]["scored"], second["counts"]["reused"], second["counts"]["tokens"]) == (0, 8, 0)
    assert after == before


def test_new_rows_cost_what_they_are(reference, tmp_path):
    run(tmp_path, rows(4), reference)
    recipe, scored = run(tmp_path, rows(6), reference)
    assert (recipe["counts"]["scored"], recipe["counts"]["reused"]) == (4, 8)
    assert all(row["logps"] < 0 for row in scored)


def test_one_completion_under_two_ids_is_scored_once(reference, tmp_path):
    again = [row | {"completion_id": f"again-{row['completion_id']}"} for row in rows(2)]
    recipe, scored = run(tmp_path, rows(2) + again, reference)
    assert recipe["counts"]["scored"] == 4
    assert [row["logps"] for row in scored[:4]] == [row["logps"] for row in scored[4:]]


@pytest.mark.parametrize(
    ("options", "scored"),
    [({"dtype": "bfloat16"}, 4), ({"template": "plain"}, 4), ({"max_length": 97}, 0), ({"max_length": 20}, 4)],
    ids=["dtype", "template", "lengths that cut nothing", "lengths that cut"],
)
def test_only_what_changes_the_numbers_is_scored_again(reference, tmp_path, options, scored):
    run(tmp_path, rows(2), reference)
    assert run(tmp_path, rows(2), reference, **options)[0]["counts"]["scored"] == scored


def test_other_weights_are_scored_again_and_equal_weights_elsewhere_are_not(reference, tmp_path):
    first = run(tmp_path, rows(2), reference)
    other = run(tmp_path, rows(2), tiny_model.save(tmp_path / "other", seed=1))
    copy = run(tmp_path, rows(2), tiny_model.save(tmp_path / "copy", seed=0))
    assert (other[0]["counts"]["scored"], copy[0]["counts"]["scored"]) == (4, 0)
    assert logps(copy) == logps(first) != logps(other)


def test_refused_and_truncated_rows_are_marked(reference, tmp_path):
    asked = [
        *rows(1, 1),
        {"completion_id": "special", "prompt": rows(1)[0]["prompt"], "completion": "<|im_end|>"},
        {"completion_id": "long", "prompt": rows(1)[0]["prompt"], "completion": "water " * 90},
        {"completion_id": "empty", "prompt": rows(1)[0]["prompt"], "completion": ""},
    ]
    recipe, (plain, special, long, empty) = run(tmp_path, asked, reference)
    assert (special["refused"], special["logps"], special["key"]) == ("text.special_token", None, None)
    assert (plain["truncated"], long["truncated"]) == (False, True)
    assert (empty["n_tokens"], empty["refused"]) == (1, None)
    assert {name: recipe["counts"][name] for name in ("scored", "refused", "truncated")} == {
        "scored": 3,
        "refused": 1,
        "truncated": 1,
    }
    assert run(tmp_path, asked, reference)[0]["counts"]["reused"] == 3


@pytest.mark.parametrize(("tried", "message"), [(True, "gives NaN or ∞"), (False, "nan")])
def test_a_log_prob_that_is_no_number_is_never_stored(tried, message, tmp_path, monkeypatch):
    if not tried:  # NaN that the first trial does not meet
        monkeypatch.setattr("rlhf_data.scoring.scorer.layout_of", lambda model: "packed")
    broken = tiny_model.model()
    broken.model.norm.weight.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny_model.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, rows(2), {"path": str(tmp_path / "broken")})
    assert not list((tmp_path / "store").rglob("shard-*"))


def test_a_store_file_that_cannot_be_read_is_named(reference, tmp_path):
    run(tmp_path, rows(2), reference)
    (shard,) = (tmp_path / "store").rglob("shard-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{shard.name} is not a readable part of the score store: delete it"):
        run(tmp_path, rows(2), reference)
    shard.unlink()
    assert run(tmp_path, rows(2), reference)[0]["counts"]["scored"] == 4


def test_when_two_scorers_wrote_a_key_the_first_value_counts(reference, tmp_path):
    recipe, before = run(tmp_path, rows(1, 1), reference)
    numeric = {name: recipe[name] for name in ("model_hash", "dtype", "head_dtype")}
    store = ScoreStore(tmp_path / "store", numeric | {"code": NUMERICS})
    (values,) = store.token_logps([before[0]["key"]])
    assert values.sum(dtype="float64") == before[0]["logps"]
    store.add([before[0]["key"]], [values - 1])
    assert run(tmp_path, rows(1, 1), reference)[1] == before


def test_a_killed_scorer_has_lost_one_shard_at_most(reference, tmp_path):
    requests = write(tmp_path / "in.parquet", rows(200, 2))
    code = f"""
import sys, time
from pathlib import Path
from rlhf_data.scoring import score
from rlhf_data.scoring import scorer as module
real = module.token_logps
module.token_logps = lambda *a: (time.sleep(0.05), real(*a))[1]
score(Path({str(requests)!r}), Path({str(tmp_path / "killed.parquet")!r}), store=Path({str(tmp_path / "store")!r}),
      model={reference!r}, max_length=96, cache=Path({str(tmp_path / "cache")!r}), token_budget=128, shard_rows=20)
"""
    scorer = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "store").glob("*/shard-*"))) < 2:
        assert scorer.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(scorer.pid, signal.SIGKILL)
    scorer.wait()
    shards = list((tmp_path / "store").glob("*/shard-*.parquet"))
    kept = sum(pq.read_metadata(shard).num_rows for shard in shards)
    recipe, scored = run(tmp_path, rows(200, 2), reference)
    assert (recipe["counts"]["reused"], recipe["counts"]["scored"]) == (kept, 400 - kept)
    assert 0 < kept < 400
    (tmp_path / "fresh").mkdir()
    assert logps((recipe, scored)) == pytest.approx(logps(run(tmp_path / "fresh", rows(200, 2), reference)), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("prompt"), "has no column prompt"),
        (
            lambda table: table.set_column(2, "completion", pa.array([None] * table.num_rows, pa.string())),
            "4 rows without completion",
        ),
    ],
)
def test_requests_of_another_shape_are_refused(reference, tmp_path, change, message):
    path = write(tmp_path / "in.parquet", rows(2))
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message):
        score(
            path, tmp_path / "out.parquet", store=tmp_path / "s", model=reference, cache=tmp_path / "c", progress=False
        )


def test_a_row_whose_score_cannot_be_found_is_no_empty_value(reference, tmp_path):
    run(tmp_path, rows(1), reference, token_logps=False)
    for path in tmp_path.glob("store/**/part-*.parquet"):  # an index of other tokens, as an older template gave
        table = pq.read_table(path)
        other = pa.array(["0" * 32] * table.num_rows)
        pq.write_table(table.set_column(table.column_names.index("key"), "key", other), path)
    with pytest.raises(ValueError, match=r"2 completions have no logps .*remove the folder `index`"):
        run(tmp_path, rows(1), reference, squares=True)


def test_one_of_several_scores_its_part_and_writes_no_answer(reference, tmp_path):
    requests, out = write(tmp_path / "in.parquet", rows(2)), tmp_path / "out.parquet"
    settings = {"store": tmp_path / "store", "cache": tmp_path / "cache", "max_length": 96, "progress": False}
    score(requests, out, model=reference, claims=tmp_path / "claims", **settings)
    assert not out.exists()
    assert score(requests, out, model=reference, **settings)["counts"]["scored"] == 0
    assert pq.read_table(out)["logps"].null_count == 0


def test_jobs_that_score_otherwise_do_not_meet_at_their_claims(tmp_path):
    requests = write(tmp_path / "in.parquet", rows(1))
    folders = {claims_of(requests, tmp_path, how) for how in ("a" * 32, "b" * 32, "a" * 32)}
    assert len(folders) == 2


def test_longer_sequences_than_change_the_others_of_a_batch_are_refused(tmp_path):
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + 3 * i for i in range(8)]}
    config = Phi3Config(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=64, sliding_window=None,
        pad_token_id=1, bos_token_id=2, eos_token_id=1, rope_scaling={"type": "longrope", **factors},
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "phi")
    tiny_model.tokenizer().save_pretrained(tmp_path / "phi")
    reference = {"path": str(tmp_path / "phi")}
    with pytest.raises(ValueError, match="set max_length: 64, or less"):
        models.load(reference, max_length=65, cache=tmp_path)
    assert models.load(reference, max_length=64, cache=tmp_path)
    recipe, _ = run(tmp_path, rows(2), reference, max_length=64)
    assert recipe["counts"]["scored"] == 4
