import gzip
import json

import polars as pl
import pytest

from rlhf_data.sources import readers


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet"])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_every_format_reads_the_same_records_plain_and_zipped(name, zipped, tmp_path):
    frame = pl.DataFrame({"prompt": ["é\nq", "r"], "answer": ["a", ""]})
    content = {
        "r.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in frame.to_dicts()).encode(),
        "r.json": json.dumps(frame.to_dicts()).encode(),
        "r.csv": b'prompt,answer\n"\xc3\xa9\nq",a\nr,""\n',
        "r.tsv": "prompt\tanswer\né q\ta\nr\t\n".encode(),
        "r.parquet": frame.write_parquet(tmp_path / "f") or (tmp_path / "f").read_bytes(),
    }[name]
    path = write(tmp_path / (name + ".gz" * zipped), gzip.compress(content) if zipped else content)
    raw = readers.read(path)
    assert (raw.name, raw.height, raw.columns(), raw.broken) == (path.name, 2, ["prompt", "answer"], {})
    assert json.loads(raw.as_json(1))["prompt"] == "r"
    assert readers.read(path, limit=1).height == 1
    assert readers.peek(path).columns() == raw.columns()


def test_a_broken_line_is_remembered_with_its_number_and_the_rest_is_read(tmp_path):
    raw = readers.read(write(tmp_path / "r.jsonl", '{"a": 1}\n\n{"a": \n[1]\n{"a": 2}\n'))
    assert raw.rows == [{"a": 1}, None, None, {"a": 2}]
    assert raw.broken[1].what.startswith("line 3: ")
    assert raw.broken[2] == readers.Broken("not a JSON object but [1]", "[1]")
    assert json.loads(raw.as_json(1)) == {"broken": raw.broken[1].text}


def test_only_a_line_feed_ends_a_line_of_json(tmp_path):
    raw = readers.read(write(tmp_path / "r.jsonl", '{"a": "x\u2028y\u0085z"}\n'))
    assert raw.rows == [{"a": "x\u2028y\u0085z"}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.json", '[{"a": 1}, {"a"', "not valid JSON: .*line 1 column"),
        ("r.json", '{"a": 1}\n{"a": 2}', "is it JSON lines"),
        ("r.json", '{"a": 1}', "holds one JSON dict"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], "gzip file is damaged after line"),
        ("r.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], "gzip file is damaged"),
        ("r.json.gz", b"[]", "gzip file is damaged"),
        ("r.parquet", b"PAR1", "not a whole Parquet file"),
        ("r.csv", "a,b\n1,2\n3\n", "Line: 3"),
        ("r.csv", "a,b\n1,2\n3,4,5\n", "Line: 3"),
        ("r.csv", 'a,b\n1,"2\n', "unterminated quote"),
        ("r.csv", "a,a\n1,2\n", "must name each column once"),
        ("r.csv", b"a,b\n\xff,2\n", "not utf-8"),
        ("r.txt", "a", "add `format:`"),
    ],
)
def test_a_file_that_cannot_be_read_whole_is_refused_with_its_name_and_place(name, content, told, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=told) as error:
        readers.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read: No such file"):
        readers.read(tmp_path / "none.jsonl")


def test_cells_of_a_csv_are_texts_and_only_an_unquoted_empty_one_is_null(tmp_path):
    raw = readers.read(write(tmp_path / "r.csv", '\ufeffid,a,b\r\n01,NULL,\r\n2,"","x\r\ny ""q"""\r\n'))
    assert isinstance(raw.rows, pl.DataFrame)
    assert raw.rows.rows() == [("01", "NULL", None), ("2", "", 'x\r\ny "q"')]


def test_quotes_in_a_tsv_are_characters_unless_the_options_say_otherwise(tmp_path):
    path = write(tmp_path / "r.tsv", 'a\tb\nsay "hi\t"all"\n')
    plain = readers.read(path).rows
    assert isinstance(plain, pl.DataFrame)
    assert plain.rows() == [('say "hi', '"all"')]
    path = write(tmp_path / "s.csv", "a;b\n'x;y';z\n")
    other = readers.read(path, quote="'", separator=";").rows
    assert isinstance(other, pl.DataFrame)
    assert other.rows() == [("x;y", "z")]


def test_a_peek_into_an_array_reads_no_further_than_it_must(tmp_path):
    record = json.dumps({"a": "x" * 2000})
    path = write(tmp_path / "r.json", "[" + ",\n".join([record] * 3000) + ", broken")
    assert readers.peek(path).height == readers.PEEKED
    with pytest.raises(ValueError, match="not valid JSON"):
        readers.read(path)


def test_a_data_set_folder_is_read_through_datasets(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"prompt": ["p", "q"], "label": [True, False]})
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "d")
    assert readers.read_dataset(f"{tmp_path}/d:train").rows.to_dicts() == table.to_list()
    assert readers.read_dataset(f"{tmp_path}/d:train", limit=1).height == 1
    with pytest.raises(ValueError, match=r"several splits.*:train, :test"):
        readers.read_dataset(f"{tmp_path}/d")
    with pytest.raises(ValueError, match="cannot load it"):
        readers.read_dataset(f"{tmp_path}/none")
