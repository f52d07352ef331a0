"""SQL over snapshots: what the tables hold, that nothing else can be read or written, and what an error says."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from rlhf_data.cli import run_command
from rlhf_data.inspect import query as module
from rlhf_data.inspect.query import STORED, TABLES, describe, named, query, query_to
from rlhf_data.scoring.store import Index, ScoreStore, compact
from tests.project import SPEC


@pytest.fixture
def demo(built):
    return {"demo": built.snapshot}


def test_rows_and_what_the_manifest_says_are_tables(demo, built):
    rows = built.snapshot.scan().collect()
    assert query("SELECT count(*), sum(weight) FROM rows", demo).rows == [(rows.height, rows["weight"].sum())]
    assert query("FROM demo", demo).columns == rows.columns
    assert query("SELECT count(*) FROM demo.rows", demo).rows == [(rows.height,)]
    codes = query("SELECT code FROM quarantine ORDER BY 1", demo).rows
    assert codes == [("json.invalid",), ("rating.out_of_scale",)]
    assert dict(query("FROM splits", demo).rows) == built.snapshot.manifest["rows"]
    assert query("SELECT source, file, records FROM sources", demo).rows == [("a", "r.jsonl", 50)]
    assert query("SELECT id FROM snapshots", demo).rows == [(built.snapshot.id,)]


def test_what_rating_learned_is_a_table(project):
    votes = [{"prompt": f"q{q}", "chosen": "a", "rejected": "b", "annotator": who} for q in range(9) for who in "xyz"]
    project.raw([*votes, {"prompt": "q0", "chosen": "b", "rejected": "a", "annotator": "odd"}])
    project.spec(SPEC.replace("{by: rating, scale: [1, 5]}", "{by: votes, votes: dawid_skene}"))
    assert project.build() == 0
    found = query("SELECT annotator, votes, p_right > p_wrong FROM annotators", {"demo": project.snapshot})
    assert found.rows == [("x", 9, True), ("y", 9, True), ("z", 9, True), ("odd", 1, True)]
    assert query("FROM models", {"demo": project.snapshot}).rows == []


def test_what_came_into_a_step_is_what_left_it(demo):
    balance = "sum(n) FILTER (went = 'in') - sum(n) FILTER (went != 'in')"
    steps = query(f"SELECT step, unit, {balance} FROM accounting GROUP BY ALL", demo).rows
    assert len(steps) > 4
    assert {left for *_, left in steps} == {0}


def test_several_snapshots_are_asked_at_once_by_their_names(built):
    built.raw([{"prompt": "q", "completion": str(k), "rating": k} for k in range(1, 4)])
    assert built.build() == 0
    both = named([("old", _at(built, 0)), (None, _at(built, 1))])
    counted = dict(query("SELECT snapshot, count(*) FROM rows GROUP BY 1", both).rows)
    assert counted == {"old": 72, "demo": 3}
    joined = "SELECT count(*) FROM demo JOIN old USING (pair_id)"
    assert query(joined, both).rows == [(0,)]
    assert [t["rows"] for t in describe(both) if t["table"].endswith(".rows")] == [72, 3]


def _at(project, k):
    from rlhf_data.snapshot import Snapshot

    return Snapshot(project.folder / "snapshots" / "demo" / project.versions[k])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('demo.yaml')",
        "SELECT * FROM 'demo.yaml'",
        "SELECT * FROM read_csv('https://example.org/x.csv')",
        "COPY rows TO 'stolen.csv'",
        "COPY (SELECT 1) TO 'snapshots/demo/x.csv'",
        "DROP VIEW rows",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO demo.accounting VALUES ('a', 'b', 'c', 'd', 1)",
        "SET threads = 1",
        "ATTACH 'x.duckdb'",
        "INSTALL httpfs",
        "SELECT 1; DROP VIEW rows",
    ],
)
def test_a_query_reads_snapshots_and_does_nothing_else(sql, demo, built):
    before = sorted(built.folder.rglob("*"))
    with pytest.raises(ValueError, match=r"."):
        query(sql, demo)
    with pytest.raises(ValueError, match=r"."):
        query_to(sql, demo, Path("out.csv"))
    assert sorted(built.folder.rglob("*")) == before


def test_an_error_of_sql_is_one_message_that_names_the_tables(built, capfd):
    for sql, message in {
        "SELECT nope FROM rows": 'Referenced column "nope" not found',
        "SELECT * FROM row": f"tables: {', '.join(TABLES)}, scores, score_keys",
        "SELEC 1": 'syntax error at or near "SELEC"',
        "": "the query is empty",
        "PIVOT rows ON split USING count(*)": "write PIVOT",
        "DELETE FROM rows": "DELETE is not a query",
    }.items():
        assert run_command(["query", sql]) == 1
        said = capfd.readouterr().err
        assert message in said
        assert "Traceback" not in said


def test_scores_are_asked_where_no_snapshot_was_built(project, capfd):
    assert run_command(["query", "SELECT count(*) AS n FROM scores", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [{"n": 0}]
    assert run_command(["query", "FROM rows"]) == 1
    assert "tables: scores, score_keys; no snapshot was built" in capfd.readouterr().err
    assert run_command(["explain", "x"]) == 1
    assert "no snapshot was built in" in capfd.readouterr().err


def test_a_result_is_printed_or_written_whole(built, capsys):
    capsys.readouterr()
    sql = "SELECT split, count(*) AS n FROM rows GROUP BY 1 ORDER BY 1"
    assert run_command(["query", sql]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["split", "n"]
    assert {s: int(n) for s, n in map(str.split, lines)} == built.snapshot.manifest["rows"]
    assert run_command(["query", sql, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {line["split"]: line["n"] for line in told} == built.snapshot.manifest["rows"]
    for name, read in {"o.parquet": pl.read_parquet, "o.csv": pl.read_csv}.items():
        assert run_command(["query", sql + " -- a remark", "--out", name]) == 0
        assert dict(read(name).iter_rows()) == built.snapshot.manifest["rows"]
    assert run_command(["query", "SELECT * FROM rows", "--rows", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("pair_id") == 2
    assert "more than these 2 rows" in shown.err
    assert run_command(["query", sql, "--out", "o.xlsx"]) == 1


def test_lists_and_structs_are_json_in_a_csv_file(built, capsys):
    sql = """SELECT prompt, raw_ref, chosen, MAP {'a "b"': 1} AS "a map" FROM rows ORDER BY pair_id"""
    assert run_command(["query", sql, "--out", "o.csv"]) == 0
    written, rows = pl.read_csv("o.csv"), built.snapshot.scan().sort("pair_id").collect()
    assert written.columns == ["prompt", "raw_ref", "chosen", "a map"]
    assert [json.loads(text) for text in written["prompt"]] == rows["prompt"].to_list()
    assert [json.loads(text) for text in written["raw_ref"]] == rows["raw_ref"].to_list()
    assert written["chosen"].to_list() == rows["chosen"].to_list()
    assert json.loads(written["a map"][0]) == {'a "b"': 1}


def test_the_tables_and_their_columns_are_listed(built, capsys):
    capsys.readouterr()
    assert run_command(["query", "--tables", "--json", "--snapshot", "mine=snapshots/demo"]) == 0
    listed = {table["table"]: table for table in json.loads(capsys.readouterr().out)}
    assert list(listed) == [*TABLES, *STORED]
    assert listed["scores"]["rows"] == 0
    assert listed["rows"]["rows"] == 72
    assert listed["rows"]["columns"]["margin"] == "DOUBLE"
    assert run_command(["query", "--tables"]) == 0
    assert "accounting  (" in capsys.readouterr().out


def test_the_score_store_is_a_table_of_each_keys_first_values(demo, tmp_path):
    store, recipe = tmp_path / "store", {"model_hash": "m", "dtype": "float32"}
    empty = describe(demo, store=store)
    for model in ("m", "n"):
        ScoreStore(store, recipe | {"model_hash": model}).add(["a"], [np.float32([-1, -2])])
    ScoreStore(store, recipe).add(["a", "b"], [np.float32([-5, -6]), np.float32([-4])], mean_log_p2=[-0.5, -0.25])
    given = {"completion_id": ["one", "two"], "key": ["a", None], "n_tokens": [2, None]}
    Index(store, {"tokenizer_hash": "t"}).add(pa.table(given | {"truncated": [True, None], "refused": [None, "empty"]}))
    sql = "SELECT model, key, logps, n_tokens, mean_log_p2, dtype FROM scores ORDER BY ALL"
    found = query(sql, demo, store=store).rows
    assert found[1:] == [("m", "b", -4, 1, -0.25, "float32"), ("n", "a", -3, 2, None, "float32")]
    assert found[0] == ("m", "a", -3, 2, -0.5, "float32")  # what was stored first, and what was measured later
    joined = "SELECT completion_id, truncated, logps FROM score_keys LEFT JOIN scores USING (key) WHERE model = 'n'"
    assert query(joined, demo, store=store).rows == [("one", True, -3)]
    filled = describe(demo, store=store)
    assert [t["columns"] for t in filled] == [t["columns"] for t in empty]
    assert {t["table"]: (t["rows"], f["rows"]) for t, f in zip(empty, filled, strict=True) if t["table"] in STORED} == {
        "scores": (0, 3),
        "score_keys": (0, 2),
    }


def test_a_broken_shard_stops_no_query_that_does_not_read_it(demo, tmp_path):
    store = ScoreStore(tmp_path, {"model_hash": "m"})
    store.add(["a"], [np.float32([-1])])
    next(store.folder.glob("*.parquet")).write_bytes(b"broken")
    assert query("SELECT count(*) FROM splits", demo, store=tmp_path).rows
    with pytest.raises(ValueError, match=r"shard-.*\.parquet"):
        query("FROM scores", demo, store=tmp_path)


def test_a_query_survives_a_compaction_of_the_shards_it_listed(demo, tmp_path, monkeypatch):
    store, listed = ScoreStore(tmp_path, {"model_hash": "m"}), []
    for key in ("a", "b"):
        store.add([key], [np.float32([-1])])
    real = module._stored

    def then_compacted(*arguments):
        listed.append(real(*arguments))
        compact(tmp_path)
        return listed[-1]

    monkeypatch.setattr(module, "_stored", then_compacted)
    assert query("SELECT count(*), sum(logps) FROM scores", demo, store=tmp_path).rows == [(2, -2)]
    assert len(listed) == 2


def test_a_file_that_was_removed_is_named(demo, built):
    (gone := built.snapshot.files()[0]).unlink()
    with pytest.raises(ValueError, match=f"{gone.name} is not there any more: remove .* and build it again"):
        query("FROM rows", demo)


def test_names_are_told_apart(built):
    one = built.snapshot
    assert list(named([(None, one), (None, one), ("rows", one)])) == ["demo", "demo_2", "rows_2"]
    with pytest.raises(ValueError, match="two snapshots are called 'x'"):
        named([("x", one), ("x", one)])
