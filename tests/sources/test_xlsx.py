from datetime import date

import pytest

from rlhf_data.sources import readers
from tests.sources.workbook import write_xlsx

HEADER = ["q", "a", "stars", "day"]


def read(path, **options):
    return readers.read(path, **options).rows


def test_a_cell_keeps_the_type_that_the_sheet_gives_it(tmp_path):
    rows = [["p", "x", 4, date(2024, 2, 29)], ["p", True, 4.5, None], ["07", "#N/A", "4", "29.2.2024"]]
    assert read(write_xlsx(tmp_path / "f.xlsx", one=[HEADER, *rows])) == [
        {"q": "p", "a": "x", "stars": 4, "day": "2024-02-29"},
        {"q": "p", "a": True, "stars": 4.5, "day": None},
        {"q": "07", "a": None, "stars": "4", "day": "29.2.2024"},
    ]


def test_blank_rows_are_no_records(tmp_path):
    rows = [[None], HEADER, [None], ["p", "x", 1], [None], ["p", "y", 2]]
    path = write_xlsx(tmp_path / "f.xlsx", one=rows)
    assert [row["a"] for row in read(path)] == ["x", "y"]
    assert [row["a"] for row in read(path, limit=1)] == ["x"]


def test_the_sheet_must_be_named_where_there_are_several(tmp_path):
    path = write_xlsx(tmp_path / "f.xlsx", one=[["a"], [1]], two=[["a"], [2]])
    assert read(path, sheet="two") == [{"a": 2}]
    with pytest.raises(ValueError, match="has the sheets one, two; say which one"):
        read(path)
    with pytest.raises(ValueError, match="has no sheet 'three'; it has one, two"):
        read(path, sheet="three")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([["a", "a"], [1, 2]], "must name each column once"),
        ([[None]], "must name each column once"),
        ([["a"], [1, 2]], "row 2 has 2 in a column without a name"),
    ],
)
def test_a_sheet_without_a_sound_header_is_an_error(rows, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        read(write_xlsx(tmp_path / "f.xlsx", one=rows))


def test_a_file_that_is_no_workbook_is_an_error(tmp_path):
    path = tmp_path / "f.xlsx"
    path.write_text("hello")
    with pytest.raises(ValueError, match="not an Excel file"):
        read(path)


def test_a_sheet_is_a_source_like_any_other(tmp_path, run):
    rows = [HEADER, ["p", "x", 4], ["p", True, 5], ["p", "y", "five"], ["p", "z", 3]]
    path = write_xlsx(tmp_path / "f.xlsx", one=rows, two=[["a"]])
    columns = {"prompt": "q", "completion": "a", "rating": "stars"}
    found = run({"raw": [str(path)]}, columns=columns, options={"sheet": "one"})
    assert found.judgments["value"].to_list() == [4.0, 3.0]
    assert found.codes() == ["column.type", "column.type"]
    assert found.judgments["raw_ref"].to_list() == ["f.xlsx#0", "f.xlsx#3"]
