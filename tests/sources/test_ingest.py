import json

import polars as pl
import pytest

from rlhf_data.ids import content_id
from rlhf_data.sources import ADAPTERS, adapter, check_options, parts
from rlhf_data.sources.ingest import ingest
from rlhf_data.sources.observations import Read, no_rows

PAIR = {"prompt": "p", "completion": "a", "other": "b", "preference": "v"}
GOOD = {"p": "hi", "a": "x", "b": "y", "v": 1.0}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"p": None}, "prompt.missing"),
        ({"p": []}, "prompt.missing"),
        ({"p": " \n"}, "prompt.empty"),
        ({"p": [{"role": "tool", "content": "q"}]}, "prompt.role"),
        ({"p": [{"content": "q"}]}, "prompt.role"),
        ({"p": [{"role": "user", "content": None}]}, "prompt.content"),
        ({"p": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}, "prompt.last_turn"),
        ({"p": "a\0b"}, "text.nul"),
        ({"a": None}, "completion.missing"),
        ({"b": None}, "completion.missing"),
        ({"a": "\0"}, "text.nul"),
        ({"a": "\ud800"}, "text.surrogate"),
        ({"a": 1}, "column.type"),
        ({"a": "y"}, "pair.identical"),
        ({"a": "y", "v": None}, "pair.identical"),
        ({"v": None}, "verdict.missing"),
        ({"v": float("nan")}, "value.not_finite"),
        ({"v": 1.5}, "preference.out_of_range"),
    ],
)
def test_what_no_later_step_could_use_is_refused_by_code_with_the_raw_record(change, code, run):
    turns = isinstance(change.get("p"), list)
    good = {**GOOD, "p": [{"role": "user", "content": "hi"}]} if turns else GOOD
    found = run([good, {**good, **change}, good], columns=PAIR)
    assert found.codes() == [code]
    assert found.quarantine["raw_ref"].to_list() == [["raw.jsonl#1"]]
    assert found.quarantine["step"].to_list() == ["read"]
    assert json.loads(found.quarantine["row"][0]).keys() == good.keys()
    assert found.records.quarantined == {code: 1}
    assert found.records.out == found.judgments.height == 2


def test_an_empty_answer_is_legal(run):
    assert run([{**GOOD, "a": ""}], columns=PAIR).completions["completion"].to_list() == ["", "y"]


def test_a_completion_is_held_once_and_every_judgment_is_kept(run):
    found = run([GOOD, {**GOOD, "v": 0.0}, {**GOOD, "a": "y", "b": "x"}], columns=PAIR)
    assert found.completions["completion"].to_list() == ["x", "y"]
    assert found.judgments["value"].to_list() == [1.0, 0.0, 1.0]
    assert found.judgments["completion_id"].n_unique() == 2
    assert found.prompts.height == 1


def test_ids_depend_on_nothing_but_the_texts(run):
    one = run([GOOD, {**GOOD, "p": "ho"}], columns=PAIR)
    other = run([{**GOOD, "p": "ho", "a": "z"}, GOOD], columns=PAIR)
    shared = one.completions.join(other.completions, on="completion_id")
    assert sorted(shared["completion"]) == ["x", "y", "y"]
    assert len(content_id("x")) == len(one.prompts["prompt_id"][0])


def test_files_are_read_one_by_one_so_their_types_may_differ(tmp_path, run):
    (tmp_path / "1.jsonl").write_text(json.dumps({"p": "p", "a": "a", "s": "4"}))
    (tmp_path / "2.csv").write_text("s,a,p,extra\n5,b,p,!\n")
    files = {"raw": [str(tmp_path / "1.jsonl"), str(tmp_path / "2.csv")]}
    found = run(files, columns={"prompt": "p", "completion": "a", "rating": "s"}, category="k")
    assert found.judgments.select("raw_ref", "value").rows() == [("1.jsonl#0", 4.0), ("2.csv#0", 5.0)]
    assert found.completions["category"].to_list() == ["k", "k"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, run):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.jsonl").write_text(json.dumps({**GOOD, "p": folder}))
    found = run({"raw": [str(tmp_path / folder / "r.jsonl") for folder in ("x", "y")]}, columns=PAIR)
    assert found.judgments["raw_ref"].to_list() == ["x/r.jsonl#0", "y/r.jsonl#0"]


def test_broken_lines_are_counted_as_records(tmp_path, run):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{oops\n")
    found = run(path, columns=PAIR)
    assert found.records.as_dict()["quarantined"] == {"json.invalid": 1}
    assert found.records.rows_in == 2


def test_a_limit_takes_the_first_records_of_each_file(run):
    assert run([{**GOOD, "p": str(i)} for i in range(9)], columns=PAIR, limit=3).records.rows_in == 3


def test_a_record_that_vanishes_is_a_fault_of_the_adapter(tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    monkeypatch.setattr(parts.declared, "read", lambda raw, columns: Read(no_rows()))
    with pytest.raises(RuntimeError, match=r"r\.jsonl: record \[0, 1\] is in none of"):
        ingest(tmp_path, chunks=tmp_path / "c", source="s", files={"raw": [str(tmp_path / "r.jsonl")]}, columns=PAIR)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"adapter": "hh_rlhf", "columns": PAIR}, "one of adapter, columns and sql"),
        ({"adapter": "hh"}, "no adapter named 'hh', did you mean"),
        ({"adapter": "pandalm", "options": {"ties": 0}}, "did you mean 'tie'"),
        ({"adapter": "alpaca_eval"}, "needs the option 'verdict'"),
        ({"columns": PAIR, "options": {"quotes": ""}}, "did you mean 'quote'"),
        ({"columns": {**PAIR, "prompt": "pp"}}, "no column 'pp'"),
        ({"columns": {"prompt": "p"}}, "has no completion"),
        ({}, "has no prompt"),
        ({"adapter": "llmfao"}, "llmfao reads the tables votes, battles, models; given: raw"),
        ({"files": {}, "columns": PAIR}, "no files"),
        (
            {"columns": {**PAIR, "preference": {"from": "v", "map": {"x": 1}}}},
            "its keys are x, but the column is Float64",
        ),
        ({"columns": {**PAIR, "completion": {"last_of": "a"}}}, "must be|is a text"),
    ],
)
def test_what_the_user_got_wrong_is_a_value_error_that_says_it(given, told, tmp_path):
    (tmp_path / "r.parquet").write_bytes(b"")
    pl.DataFrame([GOOD]).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=told):
        ingest(
            tmp_path, chunks=tmp_path / "c", **{"source": "s", "files": {"raw": [str(tmp_path / "r.parquet")]}, **given}
        )


def test_a_file_without_records_gives_empty_tables(tmp_path, run):
    (tmp_path / "r.jsonl").write_text("\n")
    found = run(tmp_path / "r.jsonl", columns=PAIR)
    assert (found.records.rows_in, found.prompts.height, found.quarantine.height) == (0, 0, 0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_reads_the_tables_it_declares(name):
    import inspect

    module = adapter(name)
    positional = [p.name for p in inspect.signature(module.read).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == list(module.TABLES)
    assert inspect.getdoc(module.read)
    assert check_options(name, {"quote": ""}) == check_options(name, {})
