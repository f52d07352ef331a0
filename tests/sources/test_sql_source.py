import json

import polars as pl
import pytest

from rlhf_data.sources.sql import check_sql, mentions

ROWS = [
    {"q": "p0", "a": "x", "b": "y", "lang": "en"},
    {"q": "p1", "a": "x", "b": "y", "lang": "de"},
    {"q": "p2", "a": "x", "b": "y", "lang": "en"},
]
QUERY = "SELECT q AS prompt, a AS chosen, b AS rejected FROM raw WHERE lang = 'en'"


def test_a_plain_query_keeps_lineage_without_asking_for_it(run):
    found = run(ROWS, sql=QUERY)
    assert found.judgments["raw_ref"].to_list() == ["raw.jsonl#0", "raw.jsonl#2"]
    assert found.records.rows_in == 3
    assert found.records.filtered == {"sql": 1}


def test_a_grouped_query_gives_rows_of_its_own(run):
    found = run(
        ROWS, sql="SELECT lang AS prompt, min(q) AS completion, count(*) AS rating FROM raw GROUP BY lang ORDER BY 1"
    )
    assert found.judgments["raw_ref"].to_list() == ["raw.jsonl?sql#0", "raw.jsonl?sql#1"]
    assert found.judgments["value"].to_list() == [1.0, 2.0]
    assert found.records.filtered == {"sql": 1}


def test_a_query_may_give_several_rows_a_record(run):
    query = "SELECT record, q AS prompt, unnest([a, b]) AS completion, 1 AS rating FROM raw"
    found = run(ROWS, sql=query)
    assert found.judgments.height == 6
    assert found.records.out == 3


def test_refused_rows_of_a_query_are_traced_to_their_records(run):
    found = run([ROWS[1], {**ROWS[0], "a": "y"}], sql=QUERY)
    assert found.codes() == ["pair.identical"]
    assert found.quarantine["raw_ref"].to_list() == [["raw.jsonl#1"]]


def test_tables_are_joined_and_damage_in_each_is_reported(tmp_path, run):
    (tmp_path / "votes.jsonl").write_text("\n".join(json.dumps({"id": i, "v": 1}) for i in (1, 2)))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"id": 1, "q": "p", "a": "x", "b": "y"}) + "\n{oops\n")
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("votes", "texts")}
    parts = "q AS prompt, a AS completion, b AS other, v AS preference"
    query = f"SELECT votes.record, {parts} FROM votes JOIN texts USING (id)"
    found = run(files, sql=query)
    assert found.judgments["raw_ref"].to_list() == ["votes.jsonl#0"]
    assert found.quarantine.select("code", "raw_ref").rows() == [("json.invalid", ["texts.jsonl#1"])]
    assert found.records.filtered == {"sql": 1}


@pytest.fixture
def joined(tmp_path):
    """Verdicts 0 to 2, and answers in another order, one of them never judged."""
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps({"id": i, "score": i}) + "\n" for i in range(3)))
    answers = [{"id": i, "q": f"q{i}", "a": f"a{i}"} for i in (3, 2, 1, 0)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return {name: [str(tmp_path / f"{name}.jsonl")] for name in ("judged", "texts")}


@pytest.mark.parametrize(
    ("tables", "refs"),
    [
        ("judged JOIN texts USING (id)", [f"judged.jsonl#{i}" for i in range(3)]),
        ('texts AS t JOIN Judged AS "v j" ON t.id = "v j".id', [f"judged.jsonl#{i}" for i in range(3)]),
        ("texts JOIN (SELECT id, avg(score) AS score FROM judged GROUP BY id) USING (id)", None),
        ("texts LEFT JOIN judged USING (id)", None),
        ("texts JOIN (SELECT id, score FROM judged) USING (id)", None),
    ],
)
def test_only_records_of_the_main_table_are_traced(joined, run, tables, refs):
    found = run(joined, sql=f"SELECT q AS prompt, a AS completion, score AS rating FROM {tables}")
    named = dict(found.judgments.select("raw_ref", "value").iter_rows())
    if refs:
        assert named == {ref: float(ref[-1]) for ref in refs}
    else:
        assert all(ref.startswith("judged.jsonl?sql#") for ref in named)


@pytest.mark.parametrize("operation", ["UNION ALL", "UNION ALL BY NAME", "EXCEPT"])
def test_rows_of_several_selects_are_named_by_their_place(operation, run):
    halves = (f"SELECT q AS prompt, {answer} AS completion, 1 AS rating FROM raw" for answer in "ab")
    found = run(ROWS, sql=f" {operation} ".join(halves))
    assert all(ref.startswith("raw.jsonl?sql#") for ref in found.judgments["raw_ref"])
    assert found.judgments.height == (3 if operation == "EXCEPT" else 6)


def test_a_mistyped_cell_matters_only_where_the_query_can_use_it(run):
    rows = [{**ROWS[0], "note": "n"}, {**ROWS[2], "note": 1}, {**ROWS[2], "note": "n", "a": True}]
    assert run(rows, sql=QUERY).codes() == ["column.type"]
    assert mentions("SELECT a.b FROM raw", "b")
    assert not mentions("SELECT abc FROM raw", "b")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT nope AS prompt FROM raw", "nope"),
        ("SELEC 1", "syntax error"),
        ("SELECT 99 AS record, q AS prompt, a AS completion FROM raw", "must be the record of the table raw"),
        ("SELECT q AS prompt FROM raw", "has no completion"),
        ("SELECT q AS prompt, a AS completion FROM read_csv('/etc/passwd')", "disabled"),
    ],
)
def test_a_query_that_fails_says_why(query, told, run):
    with pytest.raises(ValueError, match=told):
        run(ROWS, sql=query)


def test_a_query_is_checked_on_empty_tables():
    schemas = {"raw": dict.fromkeys(("q", "a", "b", "lang"), pl.String())}
    assert check_sql(QUERY, schemas) == []
    assert "did you mean 'completion'" in check_sql("SELECT q AS prompt, a AS completions FROM raw", schemas)[0]
    assert "nope" in check_sql("SELECT nope FROM raw", schemas)[0]
    assert "has no prompt" in check_sql("SELECT a AS completion FROM raw", schemas)[0]
