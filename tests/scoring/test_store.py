"""Shards are found, joined and merged without losing a value; readers and writers need no lock."""

import json
import multiprocessing
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rlhf_data.scoring import shards
from rlhf_data.scoring.store import INDEX, REWARDS, SCORES, Index, RewardStore, ScoreStore, compact, ids_key, merge

RECIPE = {"model_hash": "m", "dtype": "float32", "head_dtype": "float32", "code": 1}


def keys(start: int, stop: int) -> list[str]:
    return [ids_key([i], [i + 1]) for i in range(start, stop)]


def logps(start: int, stop: int) -> list[np.ndarray]:
    return [np.linspace(-1 - i, -0.5, 1 + i % 4, dtype=np.float32) for i in range(start, stop)]


def filled(folder, *spans: tuple[int, int], **options) -> ScoreStore:
    store = ScoreStore(folder, RECIPE)
    for span in spans:
        store.add(keys(*span), logps(*span), **options)
    return store


def rows_of(store: ScoreStore, start: int, stop: int) -> list[dict]:
    return store.find(pa.array(keys(start, stop)), SCORES.schema.names[1:]).to_pylist()


def test_a_key_is_found_where_it_is_and_null_where_it_is_not(tmp_path):
    store = filled(tmp_path, (0, 5), (5, 9))
    asked = pa.array([keys(7, 8)[0], "no such key", keys(0, 1)[0], None, keys(7, 8)[0]])
    found = store.find(asked, ["logps", "n_tokens"])
    sums = [float(one.sum(dtype=np.float64)) for one in logps(0, 9)]
    assert found["logps"].to_pylist() == [sums[7], None, sums[0], None, sums[7]]
    assert store.has(asked).to_pylist() == [True, False, True, False, True]
    assert [len(one) for one in store.token_logps(keys(4, 9))] == [len(one) for one in logps(4, 9)]


def test_an_empty_store_has_nothing_and_no_key_asked_for_gives_no_row(tmp_path):
    store = ScoreStore(tmp_path, RECIPE)
    assert rows_of(store, 0, 2) == [dict.fromkeys(SCORES.schema.names[1:])] * 2
    assert filled(tmp_path, (0, 3)).find(pa.array([], pa.string()), ["logps"]).num_rows == 0
    assert compact(tmp_path / "nothing") == []


@pytest.mark.parametrize("rows_per_file", [1_000_000, 64, 8], ids=["one file", "16 files", "256 files"])
def test_compaction_changes_no_value_and_leaves_one_file_a_prefix(tmp_path, monkeypatch, rows_per_file):
    monkeypatch.setattr(shards, "ROWS_PER_FILE", rows_per_file)
    store = filled(tmp_path, (0, 100), (50, 300), (300, 301))
    before = rows_of(store, 0, 310)
    (done,) = compact(tmp_path)
    files = shards.shards(store.folder, SCORES)
    assert done.before == 3 and done.now == len(files)
    assert len({file.prefix for file in files}) == len(files)
    for file in files:
        held = shards._read(file.path, SCORES, ["key"])["key"]
        assert pc.all(pc.starts_with(held, file.prefix)).as_py() and held.to_pylist() == sorted(held.to_pylist())
    assert shards.rows_in(store.folder, SCORES) == 301
    assert rows_of(store, 0, 310) == before
    assert compact(tmp_path)[0].now == len(files) and shards.shards(store.folder, SCORES) == files


def test_compaction_again_rewrites_only_the_prefixes_with_something_new(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_FILE", 64)
    store = filled(tmp_path, (0, 300))
    compact(tmp_path)
    before = set(shards.shards(store.folder, SCORES))
    filled(tmp_path, (300, 301))
    compact(tmp_path)
    after = set(shards.shards(store.folder, SCORES))
    assert [shard.prefix for shard in after - before] == [keys(300, 301)[0][0]]
    assert rows_of(store, 300, 301)[0]["logps"] is not None


def test_the_first_of_two_values_stays_first_when_shards_are_joined(tmp_path):
    store = filled(tmp_path, (0, 1))
    first = rows_of(store, 0, 1)
    store.add(keys(0, 1), [values - 1 for values in logps(0, 1)])
    assert rows_of(store, 0, 1) == first
    compact(tmp_path)
    assert rows_of(store, 0, 1) == first
    store.add(keys(0, 1), [values - 2 for values in logps(0, 1)])
    compact(tmp_path)
    assert rows_of(store, 0, 1) == first


def test_what_was_left_out_at_first_joins_the_row_when_it_is_stored(tmp_path):
    store = filled(tmp_path, (0, 4), tokens=False)
    assert store.token_logps(keys(0, 1)) == [None]
    assert not pc.any(store.has(pa.array(keys(0, 4)), tokens=True)).as_py()
    assert pc.all(store.has(pa.array(keys(0, 4)))).as_py()
    filled(tmp_path, (0, 2), mean_log_p2=[-0.25, -0.5])
    asked = pa.array(keys(0, 4))
    for _ in range(2):
        assert store.has(asked, tokens=True, squares=True).to_pylist() == [True, True, False, False]
        assert store.find(asked, ["mean_log_p2"])["mean_log_p2"].to_pylist() == [-0.25, -0.5, None, None]
        assert np.array_equal(store.token_logps(keys(1, 2))[0], logps(1, 2)[0])
        compact(tmp_path)


def test_a_compaction_that_is_stopped_at_any_write_or_removal_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_FILE", 64)
    store = filled(tmp_path, (0, 100), (50, 200))
    before = rows_of(store, 0, 200)
    real = shards.publish
    for stop in (0, 1, 7, 15):
        count = iter(range(stop + 1))

        def publish(*arguments, count=count, stop=stop, **options):
            if next(count) == stop:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(shards, "publish", publish)
        with pytest.raises(KeyboardInterrupt):
            compact(tmp_path)
        assert rows_of(store, 0, 200) == before
    monkeypatch.setattr(shards, "publish", real)
    removed = iter(range(100))
    unlink = type(tmp_path).unlink

    def stopping(path, **options):
        if path.name.startswith("shard-") and next(removed) == 2:
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "unlink", stopping)
        with pytest.raises(KeyboardInterrupt):
            compact(tmp_path)
    assert rows_of(store, 0, 200) == before
    compact(tmp_path)
    assert rows_of(store, 0, 200) == before and shards.rows_in(store.folder, SCORES) == 200


def _write(folder, start: int) -> None:
    for at in range(start, start + 120, 10):
        filled(folder, (at, at + 10))


def _compact_often(folder, stop) -> None:
    while not stop.is_set():
        compact(folder)


def test_compaction_beside_two_writers_and_a_reader_loses_nothing(tmp_path):
    spawned = multiprocessing.get_context("forkserver")  # a fork of this process would have what other tests left in it
    stop = spawned.Event()
    writers = [spawned.Process(target=_write, args=(tmp_path, start)) for start in (0, 60)]
    compacting = [spawned.Process(target=_compact_often, args=(tmp_path, stop)) for _ in range(2)]
    store, seen, deadline = ScoreStore(tmp_path, RECIPE), 0, time.monotonic() + 60
    for process in (*compacting, *writers):
        process.start()
    while any(writer.is_alive() for writer in writers):
        assert time.monotonic() < deadline
        now = pc.sum(store.has(pa.array(keys(0, 180)))).as_py()
        assert now >= seen  # what was there once is there ever after
        seen = now
    stop.set()
    for process in (*compacting, *writers):
        process.join()
        assert process.exitcode == 0
    compact(tmp_path)
    assert pc.all(store.has(pa.array(keys(0, 180)))).as_py()
    assert shards.rows_in(store.folder, SCORES) == 180


def test_one_damaged_shard_stops_a_compaction_before_anything_is_removed(tmp_path):
    store = filled(tmp_path, (0, 50), (50, 60))
    damaged = shards.shards(store.folder, SCORES)[1].path
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"{damaged.name} is not a readable part of the score store"):
        compact(tmp_path)
    assert len(shards.shards(store.folder, SCORES)) == 2


def test_merging_takes_what_is_new_and_says_how_much(tmp_path):
    store = filled(tmp_path / "here", (0, 10))
    filled(tmp_path / "there", (5, 20), mean_log_p2=[-1.0] * 15)
    rows = pa.table({"completion_id": ["a"], "key": keys(0, 1), "n_tokens": [1], "truncated": [False]})
    Index(tmp_path / "there", {"template": "chat"}).add(rows)
    RewardStore(tmp_path / "there", {"what": "reward"}).add(dict(zip(keys(0, 2), [0.5, -3.0], strict=True)))
    before = rows_of(store, 0, 5)
    done = merge(tmp_path / "here", tmp_path / "there")
    assert sorted((one.added, one.known) for one in done) == [(1, 0), (2, 0), (15, 0)]  # all bring at least Σp²
    assert rows_of(store, 0, 5) == before
    assert store.has(pa.array(keys(0, 20)), tokens=True).to_pylist() == [True] * 20
    assert store.has(pa.array(keys(0, 20)), squares=True).to_pylist() == [False] * 5 + [True] * 15
    assert Index(tmp_path / "here", {"template": "chat"}).find(pa.array(["a"]))["key"].to_pylist() == keys(0, 1)
    assert RewardStore(tmp_path / "here", {"what": "reward"}).find(pa.array(keys(1, 2))).to_pylist() == [-3.0]
    assert sum(one.added for one in merge(tmp_path / "here", tmp_path / "there")) == 0


def test_a_store_that_is_compacted_meanwhile_is_merged_whole(tmp_path, monkeypatch):
    filled(tmp_path / "there", *((i, i + 1) for i in range(4)))
    every = shards.every

    def compacted(folder, kind):
        for n, table in enumerate(every(folder, kind)):
            yield table
            if n == 0:
                compact(tmp_path / "there")

    monkeypatch.setattr(shards, "every", compacted)
    merge(tmp_path / "here", tmp_path / "there")
    store = ScoreStore(tmp_path / "here", RECIPE)
    assert store.has(pa.array(keys(0, 4))).to_pylist() == [True] * 4


def test_values_of_two_machines_may_differ_by_rounding_and_no_more(tmp_path):
    store = filled(tmp_path / "here", (0, 3))
    before = rows_of(store, 0, 3)
    rounded = [values - np.float32(1e-5) for values in logps(0, 3)]
    ScoreStore(tmp_path / "near", RECIPE).add(keys(0, 3), rounded)
    (done,) = merge(tmp_path / "here", tmp_path / "near")
    assert (done.added, done.known) == (0, 3) and rows_of(store, 0, 3) == before
    ScoreStore(tmp_path / "far", RECIPE).add(keys(0, 6), [values - np.float32(0.01) for values in logps(0, 6)])
    with pytest.raises(ValueError, match=r"disagree on 3 keys, the first is .*one of the machines computes wrongly"):
        merge(tmp_path / "here", tmp_path / "far")
    assert rows_of(store, 0, 6)[3:] == [dict.fromkeys(SCORES.schema.names[1:])] * 3


def test_an_index_that_names_another_key_for_a_text_is_not_merged(tmp_path):
    rows = {"completion_id": ["a"], "n_tokens": [1], "truncated": [False]}
    Index(tmp_path / "here", {"template": "chat"}).add(pa.table({**rows, "key": keys(0, 1)}))
    Index(tmp_path / "there", {"template": "chat"}).add(pa.table({**rows, "key": keys(1, 2)}))
    with pytest.raises(ValueError, match="disagree on 1 keys, the first is a"):
        merge(tmp_path / "here", tmp_path / "there")


def test_a_folder_that_is_no_store_or_lies_about_its_recipe_is_not_merged(tmp_path):
    with pytest.raises(ValueError, match="holds no scores: give the folder `scores` of another workspace"):
        merge(tmp_path / "here", tmp_path)
    store = filled(tmp_path / "there", (0, 1))
    (store.folder / "recipe.json").write_text(json.dumps({**RECIPE, "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match=r"recipe.json is damaged"):
        merge(tmp_path / "here", tmp_path / "there")


def test_rewards_are_found_by_key_and_lie_beside_log_probs(tmp_path):
    store = RewardStore(tmp_path, {"what": "reward", "model_hash": "m"})
    store.add(dict(zip(keys(0, 3), [1.0, 2.0, -0.5], strict=True)))
    assert store.find(pa.array([keys(2, 3)[0], "none"])).to_pylist() == [-0.5, None]
    with pytest.raises(ValueError, match=r"the reward of .* is nan"):
        store.add({keys(3, 4)[0]: float("nan")})
    assert not shards.shards(store.folder, SCORES) and len(shards.shards(store.folder, REWARDS)) == 1


@pytest.mark.parametrize("compacted", [False, True])
def test_the_store_is_read_by_plain_sql(tmp_path, compacted):
    filled(tmp_path / "scores", (0, 30), (30, 40))
    Index(tmp_path / "scores", {"template": "chat"}).add(
        pa.table({"completion_id": ["a", "b"], "key": keys(3, 5), "n_tokens": [4, 1], "truncated": [False, True]})
    )
    RewardStore(tmp_path / "scores", {"what": "reward"}).add({keys(0, 1)[0]: 1.0})
    if compacted:
        compact(tmp_path / "scores")
    found = duckdb.sql(
        f"SELECT count(*), sum(logps), sum(list_sum(token_logps)) FROM '{tmp_path}/scores/*/shard-*.parquet'"
    ).fetchall()
    total = sum(float(one.sum(dtype=np.float64)) for one in logps(0, 40))
    assert found == [(40, pytest.approx(total), pytest.approx(total, rel=1e-5))]
    joined = duckdb.sql(
        f"SELECT completion_id, logps FROM '{tmp_path}/scores/index/*/part-*.parquet' JOIN "
        f"'{tmp_path}/scores/*/shard-*.parquet' USING (key) ORDER BY 1"
    ).fetchall()
    sums = [float(one.sum(dtype=np.float64)) for one in logps(3, 5)]
    assert joined == [("a", sums[0]), ("b", sums[1])]


def test_ids_that_are_no_hashes_are_joined_into_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_FILE", 4)
    index = Index(tmp_path, {"template": "chat"})
    for start in (0, 10):
        ids = [f"row {i}" for i in range(start, start + 10)]
        index.add(pa.table({"completion_id": ids, "key": keys(start, start + 10), "truncated": [False] * 10}))
    compact(tmp_path)
    assert [shard.prefix for shard in shards.shards(index.folder, INDEX)] == [""]
    assert index.find(pa.array(["row 3", "row 19"]))["key"].to_pylist() == [keys(3, 4)[0], keys(19, 20)[0]]
