"""Raw files that look sound and are not."""

import gzip
import json

import pytest

from rlhf_data.sources import readers

COLUMNS = {"prompt": "p", "completion": "c", "rating": "r"}
SOUND = '{"p": "q", "c": "a", "r": 1}'
# A key twice, and one twice further in: a plain parser keeps the last value and says nothing.
TWICE = ['{"p": "q", "c": "b", "r": 1, "r": 5}', '{"p": "q", "c": "d", "r": 2, "x": [{"y": {"z": 1, "z": 1}}]}']


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.jsonl.gz", "f.json.gz"])
def test_a_key_that_stands_twice_refuses_its_record_and_no_other(name, tmp_path, run):
    records = [SOUND, *TWICE, SOUND.replace("1", "3")]
    text = "\n".join(records) if "jsonl" in name else f"[{', '.join(records)}]"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    found = run({"raw": [str(path)]}, columns=COLUMNS)
    assert found.judgments["value"].to_list() == [1.0, 3.0]
    assert found.quarantine.select("code", "raw_ref").rows() == [
        ("json.duplicate_key", [f"{name}#1"]),
        ("json.duplicate_key", [f"{name}#2"]),
    ]
    assert 'the key "r" stands twice' in found.quarantine["detail"][0]
    assert json.loads(found.quarantine["row"][0]) == {"broken": TWICE[0]}


def test_an_array_with_a_repeated_key_and_a_broken_end_is_an_error(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(f"[{TWICE[0]}, {{]")
    with pytest.raises(ValueError, match="not valid JSON"):
        readers.read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.tsv", "f.csv.gz"])
@pytest.mark.parametrize("look", [readers.read, readers.peek])
def test_a_file_of_two_bytes_a_character_is_told_by_its_encoding(encoding, name, look, tmp_path):
    text = (SOUND if "jsonl" in name else f"[{SOUND}]" if "json" in name else "p,c,r\nq,a,1\n").encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(ValueError, match=rf"{name}: is UTF-16.*`iconv -f UTF-16 -t UTF-8"):
        look(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf[]", "[é]".encode(), b"\x00\x00"])
def test_other_files_are_not_taken_for_utf_16(content, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    readers.read(path)


def test_a_value_that_would_overflow_in_a_sum_is_refused(run):
    rows = [{"p": "q", "c": str(value), "r": value} for value in (1e300, -1e300, 1.1e300, -1.7e308)]
    found = run(rows, columns=COLUMNS)
    assert found.judgments["value"].to_list() == [1e300, -1e300]
    assert found.quarantine["code"].to_list() == ["value.out_of_range"] * 2
