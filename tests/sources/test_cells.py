import polars as pl
import pytest

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.cells import INFER, JSON, SCALAR, TURNS, infer, table, tokens
from rlhf_data.sources.readers import Raw


def of(*values, wanted=INFER, path="a"):
    return table(Raw("r.jsonl", [{"a": value} for value in values], {}), {path: wanted})


def test_a_boolean_among_texts_is_refused_and_never_becomes_the_text_true():
    found = of("x", True, "True.", wanted=pl.String())
    assert found.frame["a"].to_list() == ["x", "True."]
    assert found.rejects.rows() == [(1, "column.type", "a is a boolean, not text: true")]


def test_most_cells_decide_the_type_of_a_column_that_nothing_declares():
    assert of("x", "y", 1).frame["a"].to_list() == ["x", "y"]
    assert of(1, 2, "x").rejects["record"].to_list() == [2]
    assert of(1, "x").frame["a"].to_list() == ["x"]  # as many of both: text


def test_a_column_that_is_null_for_a_thousand_records_is_still_a_text():
    assert of(*[None] * 1000, "late").frame["a"].to_list()[-1] == "late"


def test_whole_numbers_and_floats_mix_and_booleans_are_no_numbers():
    found = of(1, 2.5, True, 3)
    assert found.frame["a"].to_list() == [1.0, 2.5, 3.0]
    assert found.rejects["record"].to_list() == [2]


def test_big_integers_keep_their_digits():
    assert of(2**63, 1).frame["a"].to_list() == [2**63, 1]
    assert of(12345678901234567890, wanted=SCALAR).frame["a"].to_list() == ["12345678901234567890"]


def test_numbers_that_no_column_can_hold_are_refused():
    assert of(1, 2, 1 << 200).rejects["detail"].to_list()[0].startswith("a is too large a number")
    assert of(1, 2, 1 << 64, wanted=pl.Int64()).rejects["record"].to_list() == [2]
    assert of(0.5, 1.5, 1 << 2000).rejects["record"].to_list() == [2]
    assert of(1, 2.5, float("inf")).frame["a"].to_list() == [1.0, 2.5, float("inf")]  # for ingest to refuse


def test_half_of_a_surrogate_pair_is_refused_and_does_not_stop_the_file():
    found = of("a\ud800", "b", wanted=pl.String())
    assert found.frame["a"].to_list() == ["b"]
    assert found.rejects["code"].to_list() == ["text.surrogate"]


def test_ids_may_be_texts_or_numbers():
    assert of("w1", 2, True, 2.5, wanted=SCALAR).frame["a"].to_list() == ["w1", "2", "true", "2.5"]


def test_endless_nesting_can_be_asked_for_as_json():
    assert of({"r": [{"r": []}]}, None, wanted=JSON).frame["a"].to_list() == ['{"r": [{"r": []}]}', None]


def test_a_prompt_may_be_a_text_or_messages_and_most_cells_decide():
    message = {"content": "q", "role": "user", "extra": 1}
    assert of([message], [message], "x", wanted=TURNS).frame.schema["a"] == MESSAGES
    assert of("x", [message], "y", wanted=TURNS).frame["a"].to_list() == ["x", "y"]


@pytest.mark.parametrize("typed", [False, True], ids=["json", "frame"])
def test_a_path_reaches_into_objects_and_lists(typed):
    rows = [{"d": {"x": [{"v": "left"}]}, "d.x": "named"}, {"d": {"x": []}, "d.x": "so"}]
    raw = Raw("r", pl.DataFrame(rows) if typed else rows, {})
    assert table(raw, {"d.x[0].v": pl.String()}).frame["d.x[0].v"].to_list() == ["left", None]
    assert table(raw, {"d.x": pl.String()}).frame["d.x"].to_list() == ["named", "so"]
    assert tokens("prediction 1") == ["prediction 1"]


def test_an_absent_column_is_an_error_that_knows_the_others():
    with pytest.raises(
        ValueError, match=r"r\.jsonl: no column 'promt', did you mean 'prompt'\?; the columns are prompt"
    ):
        table(Raw("r.jsonl", [{"prompt": "x"}], {}), {"promt": INFER})


def test_texts_of_a_csv_become_the_numbers_that_are_asked_for_or_are_refused():
    raw = Raw("r.csv", pl.DataFrame({"a": [" 1", "2.5", "x", None]}), {})
    found = table(raw, {"a": pl.Float64()})
    assert found.frame["a"].to_list() == [1.0, 2.5, None]
    assert found.rejects["detail"].to_list() == ['a is not a number: "x"']
    with pytest.raises(ValueError, match="must be text"):
        table(Raw("r.parquet", pl.DataFrame({"a": [1]}), {}), {"a": pl.String()})


def test_the_type_of_nested_values_is_that_of_their_parts():
    assert infer([{"a": 1}, {"b": ["x"]}, None]) == pl.Struct({"a": pl.Int64(), "b": pl.List(pl.String())})
