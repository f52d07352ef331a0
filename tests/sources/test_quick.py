"""JSON lines are read all at once where they are plain, and that must say exactly what a look at each line says."""

import io
import json
import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlhf_data.ids import MESSAGES
from rlhf_data.sources import readers
from rlhf_data.sources.cells import INFER, JSON, SCALAR, TURNS, Table, table
from rlhf_data.sources.readers import Raw

few = settings(deadline=None, max_examples=100)
WANTED = [
    INFER, JSON, SCALAR, TURNS, pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.List(pl.String), MESSAGES,
    pl.List(pl.Struct({"x": pl.Float64, "role": pl.String})), pl.Struct({"x": pl.Int64, "y": pl.String}),
]  # fmt: skip
PATHS = ["a", "b", "a.x", "a[0]", "a[0].role", "b.y"]

texts = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00.5Z", "12:30", "1", "true", "", "\u2028"]
    ),
    st.sampled_from(["NaN", "\x00", "}\n{", "\ud800", "\udc00", "😀", "é", '"', "\\", "\x85", "\x7f", "null"]),
)
whole = st.one_of(st.integers(-3, 3), st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, 10**400]))
floats = st.one_of(st.floats(), st.sampled_from([0.1, -0.0, 1e22, 5e-324, 1.7976931348623157e308]))
scalars = [texts, whole, floats, st.booleans(), st.none(), st.one_of(whole, floats)]
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "x"])}, optional={"content": texts})
objects = st.fixed_dictionaries({}, optional={"x": whole, "y": texts, "role": texts, "": st.none()})
lists = [st.lists(kind, max_size=2) for kind in (texts, whole, floats, objects, messages, st.none())]
numbered = st.fixed_dictionaries({"role": texts, "content": whole})
kinds = [*scalars, *lists, objects, st.lists(numbered, max_size=2), st.fixed_dictionaries({"x": objects}, optional={})]


@st.composite
def files(draw) -> bytes:
    """JSON lines with odd values, and sometimes damaged as bytes."""
    of = {name: draw(st.sampled_from(kinds)) for name in ("a", "b", "c")}
    stray = draw(st.sampled_from([False, False, True]))
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        row = {}
        for name, kind in of.items():
            fate = draw(st.integers(0, 9))
            if fate == 0:
                continue
            row[name] = None if fate == 1 else draw(st.one_of(kinds)) if stray and fate == 2 else draw(kind)
        lines.append(_written(draw, row))
    ending = draw(st.sampled_from(["\n", "\n", "\n", "\n", "\r\n", "\n\n", " \n", "\n ", "", "\x0c\n"]))
    start = draw(st.sampled_from(["", "", "", "", "\ufeff", "\n", " "]))
    content = (start + "".join(line + ending for line in lines)).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0 and content:
        at = draw(st.integers(0, len(content)))
        odd = draw(
            st.sampled_from([b"\xff", b"\x00", b"{", b"}", b"\n", b"]", b",", b'"', b"0", b"-", b".", b" ", b"\\"])
        )
        content = content[:at] + odd + content[at + draw(st.integers(0, 1)) :]
    return content


def _written(draw, row: dict) -> str:
    ascii_only = draw(st.booleans())
    text = json.dumps(row, ensure_ascii=ascii_only, separators=draw(st.sampled_from([None, (",", ":"), (", ", ":\t")])))
    again = draw(st.integers(0, 19))
    if again == 0 and row:  # a key that is named twice
        return text[:-1] + ', "a": null}'
    return text.replace(": ", ":\n", 1) if again == 1 else text


def looked_at(lines: bytes) -> Raw:
    """The file as it is read line by line."""
    return Raw("r.jsonl", *readers._objects(readers._values(io.BytesIO(lines), 1)))


def asked(raw: Raw, wanted) -> Table | str:
    try:
        return table(raw, wanted)
    except ValueError as error:
        return str(error)


def assert_same(lines: bytes, wanted) -> bool:
    """Whether the file was read all at once, after making sure that it does not matter."""
    at_once, one_by_one = Raw("r.jsonl", lines=lines), looked_at(lines)
    assert at_once.columns() == one_by_one.columns()
    assert at_once.height == one_by_one.height
    found, expected = asked(at_once, wanted), asked(one_by_one, wanted)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert_frame_equal(found.frame, expected.frame, check_exact=True)
        assert_frame_equal(found.rejects, expected.rejects)
    assert [at_once.as_json(k) for k in range(at_once.height)] == [
        one_by_one.as_json(k) for k in range(one_by_one.height)
    ]
    return at_once.quick is not None


@few
@given(lines=files(), wanted=st.dictionaries(st.sampled_from(PATHS), st.sampled_from(WANTED), min_size=1, max_size=2))
def test_lines_read_all_at_once_say_what_each_line_says(lines, wanted):
    assert_same(lines, wanted)


@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize(
    "case",
    {
        "dates": (b'{"a": "2024-01-01"}\n{"a": "2024-01-01T00:00:00Z"}\n', True),
        "dates within": (b'{"a": [{"x": "2024-01-01"}]}\n', True),
        "no date": (b'{"a": "2024-02-30"}\n{"a": null}\n', True),
        "a null column": (b'{"a": null, "b": 1}\n{"b": 2}\n', True),
        "nothing in objects": (b'{}\n{"a": {}}\n', True),
        "words for numbers in texts": (b'{"a": "NaN, Inf and Infinity"}\n', True),
        "a whole surrogate pair": (b'{"a": "\\ud83d\\ude00"}\n', True),
        "a character of nothing": (b'{"a": "x\\u0000y"}\n', True),
        "numbers of other digits": (b'{"a": 9007199254740993}\n{"a": 0.5}\n', True),
        "a number of 20 digits": (b'{"a": 12345678901234567890}\n{"a": 1}\n', True),
        "the least number": (b'{"a": -9223372036854775808}\n', True),
        "messages that hold numbers": (b'{"a": [{"role": "user", "content": 5}]}\n', True),
        "a list's first": (b'{"a": [1, 0.5]}\n{"a": [2]}\n', True),
        "no finite number": (b'{"a": NaN}\n{"a": -Infinity}\n', False),
        "a word that only Arrow knows": (b'{"a": Inf}\n', False),
        "too large a number": (b'{"a": 1e400}\n{"a": 1}\n', False),
        "mixed types": (b'{"a": 1}\n{"a": "1"}\n{"a": true}\n', False),
        "a key twice": (b'{"a": 1, "a": 2}\n', False),
        "a key twice within": (b'{"a": {"x": 1, "x": 2}}\n', False),
        "half of a surrogate pair": (b'{"a": "\\ud800"}\n{"a": "x"}\n', False),
        "the other half": (b'{"a": "\\udc00"}\n{"a": "x"}\n', False),
        "no UTF-8": (b'{"a": "\xed\xa0\x80"}\n', False),
        "two objects on a line": (b'{"a": 1}{"a": 2}\n', False),
        "an object on two lines": (b'{"a":\n1}\n', False),
        "one on two and two on one": (b'{"a": {"x": 1}\n}{"a": {"x": 2}}\n', False),
        "a blank line": (b'{"a": 1}\n\n{"a": 2}\n', False),
        "CRLF": (b'{"a": 1}\r\n{"a": 2}\r\n', False),
        "a mark before the first line": (b'\xef\xbb\xbf{"a": 1}\n', False),
        "no line": (b"", False),
        "no object": (b'[{"a": 1}]\n', False),
        "a broken line": (b'{"a": 1}\n{"a": \n', False),
    }.items(),
    ids=lambda case: case[0],
)
def test_each_odd_thing_is_read_alike(case, wanted):
    lines, at_once = case[1]
    assert assert_same(lines, {"a": wanted}) == at_once


def test_values_that_nest_without_end_are_broken_records_and_do_not_end_the_process():
    deep = 'lines = b\'{"a": \' + b"[" * 200_000 + b"]" * 200_000 + b\'}\\n{"a": "x"}\\n\''
    told = "raw = Raw('r.jsonl', lines=lines); print(raw.height, list(raw.broken))"
    script = f"from rlhf_data.sources.readers import Raw\n{deep}\n{told}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "2 [0]\n")


@pytest.mark.parametrize("deep", [readers.DEEPEST - 2, readers.DEEPEST + 2, 400])
def test_brackets_in_texts_are_no_depth(deep):
    text = json.dumps({"a": "[" * 900 + '"{' * 99}) + "\n"
    assert Raw("r.jsonl", lines=(text * 3).encode()).quick is not None
    nested = '{"a": ' * deep + "1" + "}" * deep + "\n"
    assert (Raw("r.jsonl", lines=nested.encode()).quick is not None) == (deep < readers.DEEPEST)


def test_a_column_that_nests_without_end_is_an_error_that_names_it():
    raw = Raw("r.jsonl", lines=b'{"a": ' * 400 + b"1" + b"}" * 400)
    with pytest.raises(ValueError, match=r"r\.jsonl: 'a' nests too deep for a column"):
        table(raw, {"a": INFER})
    assert table(raw, {"a": JSON}).frame.height == 1


def test_a_column_with_the_name_of_the_records_number_is_an_error():
    with pytest.raises(ValueError, match=r"r\.jsonl: the column 'record' has the name of each record's number"):
        table(Raw("r.jsonl", lines=b'{"record": "x"}\n'), {"record": pl.String()})
