"""A run's batches are a table, which a step leads to; token ids are made once."""

import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from rlhf_data import rules
from rlhf_data.order import batches_from
from rlhf_data.scoring import encode
from rlhf_data.training import train
from rlhf_data.training.batches import read_split
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory, reference):
    return paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(6), reference)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory, reference):
    return unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), completions(7), reference)


def run(snapshot, folder, reference, rule="dpo", **options):
    settings = {"max_length": MAX_LENGTH, "batch_size": 4, "cache": folder.parent / "cache", "progress": False}
    return train(snapshot, folder, rule=rule, model=reference, **(settings | options))


def rows_of_step(folder, step):
    table = pl.read_parquet(folder / "batches" / "*.parquet")
    return table.filter(pl.col("step") == step).sort("position")["row_id"].to_list()


def test_a_step_leads_to_its_rows(paired, reference, tmp_path):
    manifest = run(paired, tmp_path / "run", reference, epochs=2, seed=3)
    ids = read_split(paired, "train")["pair_id"].to_pylist()
    batches = batches_from(0, ids, size=4, seed=3)
    assert manifest["steps"] == 4
    for step in range(1, 5):
        assert rows_of_step(tmp_path / "run", step) == [ids[i] for i in next(batches)]
    table = pq.read_table(sorted((tmp_path / "run" / "batches").iterdir())[1])
    assert table["step"].to_pylist() == [3, 3, 3, 3, 4, 4]
    assert table["position"].to_pylist() == [0, 1, 2, 3, 0, 1]
    assert [ids[i] for i in table["row"].to_pylist()] == table["row_id"].to_pylist()


def test_every_step_of_kto_has_both_classes_and_none_is_tiny(unpaired, reference, tmp_path):
    manifest = run(unpaired, tmp_path / "run", reference, "kto", batch_size=3)
    label = {row["completion_id"]: row["label"] for row in completions(7)}
    assert manifest["steps"] == 2
    for step in (1, 2):
        taken = rows_of_step(tmp_path / "run", step)
        assert {label[name] for name in taken} == {True, False}
        assert len(taken) in (3, 4)


def test_rules_that_rank_their_batch_get_even_ones_and_others_do_not(paired, reference, tmp_path):
    steps = {}
    for rule in ("aot", "dpo"):
        run(paired, tmp_path / rule, reference, rule, batch_size=4)
        lines = (tmp_path / rule / "metrics.jsonl").read_text().splitlines()
        steps[rule] = [json.loads(line)["rows"] for line in lines]
    assert steps == {"aot": [6], "dpo": [4, 2]}
    assert rules.averages_over_batch("aot")


def test_a_second_run_does_not_tokenise(paired, unpaired, reference, tmp_path, monkeypatch):
    losses = []
    for rule, snapshot in (("dpo", paired), ("kto", unpaired)):
        run(snapshot, tmp_path / f"{rule}-first", reference, rule)

    def refuses(*_):
        raise AssertionError("text was tokenised")

    monkeypatch.setattr(encode, "_tokenise", refuses)
    for rule, snapshot in (("dpo", paired), ("kto", unpaired)):
        run(snapshot, tmp_path / f"{rule}-second", reference, rule, learning_rate=1e-5)
        for name in ("first", "second"):
            line = (tmp_path / f"{rule}-{name}" / "metrics.jsonl").read_text().splitlines()[0]
            losses.append(json.loads(line)["loss"])
    assert losses[0] == losses[1] and losses[2] == losses[3]
    with pytest.raises(AssertionError, match="text was tokenised"):
        run(unpaired, tmp_path / "longer", reference, "unlikelihood_unpaired", max_length=MAX_LENGTH + 1)
