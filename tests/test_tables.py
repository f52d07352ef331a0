"""Contracts: what is misspelt in one is refused, and no table reaches disk that breaks its own."""

import math

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rlhf_data import files, tables
from rlhf_data.ids import MESSAGES

NAMES = [*tables.NAMES, *tables.NARROW]
CONTRACT = """schema_type: polars_dataframe
name: toy
strict: true
unique: [id]
columns:
  id: {dtype: String, str_length: {min_value: 1}}
  value: {dtype: Float64, nullable: true, finite: true}
checks:
  columns_differ: {left: id, right: id}
"""


def rated(**changes) -> pl.DataFrame:
    row = {"prompt_row": 0, "completion_row": 0, "reward": 1.0, "votes": 1, "source": "s", "judgment_rows": [0]}
    return tables.conform(pl.DataFrame([row | changes], infer_schema_length=None), "rated")


def held(**changes) -> pl.DataFrame:
    row = {"completion_id": "c" * 32, "prompt_row": 0, "completion": "yes"}
    return tables.conform(pl.DataFrame([row | changes], infer_schema_length=None), "completions")


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_those_of_the_contract_with_its_types(name):
    named = {c: column for c, column in tables.contract(name).columns.items() if not column.regex}
    always, sometimes = tables.columns(name), tables.optional_columns(name)
    assert list(always) == [c for c, column in named.items() if column.required]
    assert list(sometimes) == [c for c, column in named.items() if not column.required]
    assert {c: str(t) for c, t in (always | sometimes).items()} == {
        c: str(column.dtype.type) for c, column in named.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_only_published_tables_may_have_raw_columns_and_only_as_text(name):
    open_ended = {c: str(column.dtype) for c, column in tables.contract(name).columns.items() if column.regex}
    assert open_ended == ({"^kept_.*$": "String"} if name in ("paired", "unpaired") else {})


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_table_keeps_its_contract(name, tmp_path):
    tables.write(tables.empty(name), tmp_path / "t.parquet", name)
    assert tables.read(tmp_path / "t.parquet", name).height == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_float_of_every_contract_must_be_finite(name):
    checks = {c: [check.name for check in column.checks] for c, column in tables.contract(name).columns.items()}
    types = tables.columns(name) | tables.optional_columns(name)
    floats = {c: "finite" for c, dtype in types.items() if dtype == pl.Float64}
    floats |= {c: "finite_items" for c, dtype in types.items() if dtype == pl.List(pl.Float32)}
    assert [c for c, check in floats.items() if check not in checks[c]] == []


@pytest.mark.parametrize(("narrow", "whole"), [("paired_rows", "paired"), ("unpaired_rows", "unpaired")])
def test_a_narrow_table_is_the_published_one_without_its_texts(narrow, whole):
    shared = {c: t for c, t in tables.columns(whole).items() if c in tables.columns(narrow)}
    few = {"source", "category", "split"}
    assert tables.columns(whole).keys() - shared.keys() == tables.PUBLISHED_ONLY & tables.columns(whole).keys()
    assert {c: t for c, t in tables.columns(narrow).items() if c not in tables.NARROW[narrow]} == {
        c: pl.Categorical() if c in few else t for c, t in shared.items()
    }
    assert {"prompt_row", "weight", "split"} < tables.columns(narrow).keys()
    assert not {MESSAGES, pl.String()} & set(tables.columns(narrow).values())
    rows = [name.removesuffix("_id") + "_row" for name in tables.columns(whole) if name.endswith("_id")]
    assert {name for name in tables.NARROW[narrow] if name.endswith("_row")} == set(rows) - {"pair_row"}
    for column, dtype in shared.items():
        there, here = tables.contract(whole).columns[column], tables.contract(narrow).columns[column]
        assert there.nullable == here.nullable
        assert column in few or [str(c) for c in there.checks] == [str(c) for c in here.checks], dtype


def test_a_narrow_pair_is_of_two_answers_and_stands_once(tmp_path):
    row = {"prompt_row": 0, "chosen_row": 1, "rejected_row": 2, "preference": 1.0, "weight": 1.0}
    row |= {"source": "s", "split": "train"}
    for rows, message in (
        ([row, row], "chosen_row, rejected_row must be unique"),
        ([row | {"chosen_row": 2}], "differ"),
    ):
        with pytest.raises(tables.ContractError, match=message):
            tables.write(pl.DataFrame(rows), tmp_path / "t.parquet", "paired_rows")


def test_the_contract_that_the_next_tests_break_is_fine():
    assert list(tables.parse_contract(CONTRACT, "toy").columns) == ["id", "value"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("strict:", "stricct:"),
        ("unique:", "uniqe:"),
        ("nullable:", "nulable:"),
        ("str_length:", "str_lenght:"),
        ("min_value:", "minvalue:"),
        ("finite:", "finit:"),
        ("columns_differ:", "columns_difer:"),
        ("dtype: Float64", "dtpe: Float64"),
        ("left: id", "lft: id"),
    ],
)
def test_a_misspelt_contract_is_refused(right, wrong):
    assert CONTRACT.count(right) == 1
    with pytest.raises(ValueError, match=r"schemas/toy\.yaml"):
        tables.parse_contract(CONTRACT.replace(right, wrong), "toy")


def test_no_table_of_that_name_is_an_error_that_names_the_tables():
    with pytest.raises(ValueError, match=r"no table named 'piared'; known tables: .*paired"):
        tables.contract("piared")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_in_a_frame_of_either_kind(value, lazy):
    frame = rated(reward=value)
    with pytest.raises(tables.ContractError, match=r"rated.reward: finite.* fails in 1 rows, first row 0"):
        tables.validate(frame.lazy() if lazy else frame, "rated")


BROKEN = {
    "a null that may not be": (rated().with_columns(source=pl.lit(None, pl.Categorical)), "source: not_nullable"),
    "a reward that is not finite": (rated(reward=float("nan")), "reward: finite"),
    "a negative deviation": (rated(reward_std=-1.0), "reward_std: greater_than_or_equal_to"),
    "no vote": (rated(votes=0), "votes: greater_than_or_equal_to"),
    "one row twice": (pl.concat([rated(), rated()]), "unique"),
}


def test_an_id_that_is_too_short_never_reaches_disk(tmp_path):
    with pytest.raises(tables.ContractError, match=r"completions\.completion_id: str_length"):
        tables.write(held(completion_id="c"), tmp_path / "t.parquet", "completions")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("frame", "message"), BROKEN.values(), ids=BROKEN)
def test_a_table_that_breaks_its_contract_never_reaches_disk(frame, message, tmp_path):
    with pytest.raises(tables.ContractError, match=message):
        tables.write(frame, tmp_path / "t.parquet", "rated")
    assert list(tmp_path.iterdir()) == []


def test_every_broken_check_is_told_at_once():
    with pytest.raises(tables.ContractError) as error:
        tables.validate(rated(votes=0, reward=float("inf"), reward_std=-1.0), "rated")
    assert all(column in str(error.value) for column in ("rated.votes", "rated.reward", "rated.reward_std"))


def test_two_columns_that_must_differ_may_not_be_equal():
    pair = {"prompt_row": 0, "preference": 1.0, "votes": 1, "source": "s", "judgment_rows": [0]}
    same = tables.conform(pl.DataFrame([pair | {"chosen_row": 1, "rejected_row": 1}]), "compared")
    with pytest.raises(tables.ContractError, match="columns_differ"):
        tables.validate(same, "compared")


def test_a_missing_column_is_added_where_it_may_be_null_and_refused_where_not():
    assert rated()["label"].to_list() == [None]
    with pytest.raises(tables.ContractError, match="rated: no column votes"):
        tables.conform(rated().drop("votes"), "rated")


def test_a_write_that_fails_leaves_the_old_table_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    tables.write(rated(), path, "rated")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        tables.write(rated(votes=2), path, "rated")
    assert tables.read(path, "rated")["votes"].to_list() == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_is_read_back_as_it_was_written_and_says_what_it_is(tmp_path):
    path = tables.write(rated(), tmp_path / "t.parquet", "rated")
    assert_frame_equal(tables.read(path, "rated"), rated())
    assert pl.read_parquet_metadata(path)["rlhf_data.table"] == "rated"


def test_only_the_columns_and_rows_asked_for_are_read(tmp_path):
    path = tables.write(rated(), tmp_path / "t.parquet", "rated")
    found = tables.read(path, "rated", ["reward"], pl.col("completion_row") == rated()["completion_row"][0])
    assert_frame_equal(found, rated()[:1].select("reward"))


@pytest.mark.parametrize(("heights", "joined"), [([], []), ([1, 1, 1], [3]), ([5], [5]), ([2, 3, 1], [5, 1])], ids=str)
def test_small_parts_of_a_stream_are_joined_and_none_is_lost(heights, joined, monkeypatch):
    monkeypatch.setattr(tables, "STREAMED", 3)
    frames = [pl.DataFrame({"x": [k] * n}) for k, n in enumerate(heights)]
    found = list(tables._joined(frames))
    assert [frame.height for frame in found] == joined
    assert [x for frame in found for x in frame["x"]] == [x for frame in frames for x in frame["x"]]


def test_a_table_that_lies_in_several_files_is_scanned_as_one(tmp_path):
    rows = pl.concat([rated(completion_row=i) for i in range(7)])
    cut = [rows[:3], rows[3:6], rows[6:]]
    paths = [tables.write(part, tmp_path / f"{k}.parquet", "rated") for k, part in enumerate(cut)]
    assert_frame_equal(tables.scan(paths, "rated").collect(), rows)


def test_rows_are_validated_some_at_a_time_and_told_by_their_place_in_the_whole(monkeypatch):
    rows = pl.concat([rated(completion_row=i, votes=int(i != 5)) for i in range(7)])
    monkeypatch.setattr(tables, "VALIDATED", 2)
    with pytest.raises(tables.ContractError, match=r"rated\.votes: .* fails in 1 rows, first row 5"):
        tables.validate(rows, "rated")
    twice = pl.concat([rated(completion_row=i) for i in (0, 1, 2, 3, 0)])
    with pytest.raises(tables.ContractError, match="completion_row, source must be unique, but 2 rows share"):
        tables.validate(twice, "rated")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("not Parquet"), "cannot read"),
        (lambda path: None, "cannot read"),
        (lambda path: pl.DataFrame({"x": [1]}).write_parquet(path), "other columns or types .*: .*votes, x"),
        (lambda path: rated().cast({"votes": pl.Int32}).write_parquet(path), "other columns or types .*: votes$"),
    ],
    ids=["no Parquet", "no file", "other columns", "another type"],
)
def test_a_file_that_is_not_the_table_is_refused(make, message, tmp_path):
    make(tmp_path / "t.parquet")
    with pytest.raises(tables.ContractError, match=message):
        tables.scan(tmp_path / "t.parquet", "rated")


def test_a_value_of_another_type_never_reaches_disk(tmp_path):
    words = rated().with_columns(votes=pl.lit("many"))
    with pytest.raises(tables.ContractError, match="votes"):
        tables.write(words, tmp_path / "t.parquet", "rated")
    assert list(tmp_path.iterdir()) == []


def test_a_part_may_hold_rows_that_another_part_holds_too():
    twice = pl.concat([rated(), rated()])
    assert tables.validate(twice, "rated", unique=False).height == 2
    with pytest.raises(tables.ContractError, match="unique"):
        tables.validate(twice, "rated")


def test_a_temporary_file_is_never_taken_for_a_table(tmp_path):
    with files.whole_file(tmp_path / "t.parquet") as temporary:
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tmp"
        temporary.touch()


def scored(**changes) -> pl.DataFrame:
    row = {"prompt_row": 0, "completion_row": 0, "source": "s", "split": "train", "weight": 1.0, "judgment_rows": [0]}
    return tables.conform(pl.DataFrame([row | changes], infer_schema_length=None), "unpaired_rows")


def test_an_optional_column_is_kept_where_it_is_given_and_not_made_where_it_is_not(tmp_path):
    bare, full = scored(), scored(old_token_logps=[-1.0, -2.5], old_logps=-3.5)
    assert "old_logps" not in bare.columns
    assert set(full.columns) - set(bare.columns) == {"old_token_logps", "old_logps"}
    for frame in (bare, full):
        tables.write(frame, tmp_path / "t.parquet", "unpaired_rows")
        assert_frame_equal(tables.read(tmp_path / "t.parquet", "unpaired_rows"), frame)
    full.with_columns(pl.col("old_logps").cast(pl.Float32)).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(tables.ContractError, match="other columns or types than its contract: old_logps"):
        tables.scan(tmp_path / "t.parquet", "unpaired_rows")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_no_token_of_a_list_may_be_no_number(value, tmp_path):
    with pytest.raises(tables.ContractError, match=r"ref_token_logps: .*finite_items.* fails in 1 rows"):
        tables.write(scored(ref_token_logps=[-1.0, value]), tmp_path / "t.parquet", "unpaired_rows")
