"""Rows that are named by number lead to their ids, texts and lineage, also where rows before them were left out."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import ids, tables, texts
from rlhf_data.clean.filter import filter_completions
from tests.rows import answers_of, compared, index, named, rated, text_folder

few = settings(deadline=None, max_examples=50)
numbers = st.lists(st.integers(0, 30), unique=True, max_size=12).map(sorted)


@few
@given(held=numbers, data=st.data())
def test_a_column_is_looked_up_by_number_also_where_rows_were_left_out(held, data):
    table = pl.DataFrame({"row": pl.Series(held, dtype=pl.UInt32), "text": [f"t{row}" for row in held]}).cast(
        {"text": pl.String}
    )
    asked = data.draw(st.lists(st.sampled_from([*held, None]), max_size=12))
    found = texts.looked_up(pl.Series(asked, dtype=pl.UInt32), table, "text")
    assert found.to_list() == [None if row is None else f"t{row}" for row in asked]
    assert found.name == "text" and found.dtype == pl.String


def test_a_number_that_was_left_out_or_never_was_has_no_value():
    table = pl.DataFrame({"row": pl.Series([0, 2, 5], dtype=pl.UInt32), "text": ["t0", "t2", "t5"]})
    asked = pl.Series([5, 1, 7, None, 0], dtype=pl.UInt32)
    assert texts.looked_up(asked, table, "text").to_list() == ["t5", None, None, None, "t0"]
    assert texts.looked_up(asked, table[1:], "text").to_list() == ["t5", None, None, None, None]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no footer"])
def test_the_size_of_texts_in_a_damaged_chunk_is_not_guessed(content, tmp_path):
    texts.write_chunks(tmp_path, [])
    assert texts.mean_bytes(tmp_path, "prompts") == 0.0
    texts.write_chunks(tmp_path, [texts.Chunk(str(tmp_path), "s", 0)])
    if content is not None:
        (tmp_path / "prompts.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts.parquet is damaged: remove .* and run again"):
        texts.mean_bytes(tmp_path, "prompts")


@few
@given(lists=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=6), held=st.booleans())
def test_lineage_is_each_record_once_in_order_of_file_and_record(lists, held):
    judgments = pl.DataFrame(
        {
            "judgment_row": pl.Series(range(6), dtype=pl.UInt32),
            "file": pl.Series(["b", "a", "b", "a", "c", "c"], dtype=pl.Categorical),
            "record": pl.Series([10, 2, 9, 2, 1, 0], dtype=pl.UInt32),
        }
    )
    refs = [("b", 10), ("a", 2), ("b", 9), ("a", 2), ("c", 1), ("c", 0)]
    if held:  # the first was left out: a number is not a place any more
        judgments, lists = judgments[1:], [[row or 1 for row in rows] for rows in lists]
    names = texts.Names(pl.DataFrame(), pl.DataFrame(), *texts._records(judgments))
    found = texts.identify(pl.DataFrame({"judgment_rows": pl.Series(lists, dtype=tables.UINT32S)}), names)["raw_ref"]
    wanted = [sorted({refs[row] for row in rows}) for rows in lists]
    assert found.to_list() == [[f"{file}#{record}" for file, record in one] for one in wanted]
    assert found.dtype == pl.List(pl.String)


@few
@given(held=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=5), data=st.data())
def test_judgments_behind_a_pair_are_those_of_both_answers(held, data):
    places = st.integers(0, len(held) - 1)
    pairs = data.draw(st.lists(st.tuples(places, places), max_size=6))
    first, second = (pl.Series([pair[k] for pair in pairs], dtype=pl.UInt32) for k in (0, 1))
    found = texts._both(pl.Series("judgment_rows", held, dtype=tables.UINT32S), first, second)
    assert (found.name, found.dtype) == ("judgment_rows", tables.UINT32S)
    assert found.to_list() == [held[a] + held[b] for a, b in pairs]


RECORDS = [
    {"prompt": f"p{p}", "completion": f"answer {a} to {p}", "rating": a, "category": "xy"[a % 2]}
    for p in range(4)
    for a in range(3)
]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """A text folder of two sources that share texts, and what a filter leaves of it."""
    folder = tmp_path_factory.mktemp("texts")
    text = text_folder(folder, {"first": RECORDS[:8], "second": RECORDS[4:]})
    (left := folder / "left").mkdir()
    filter_completions({"text": text}, left, where="completion NOT LIKE '%0 to%' AND prompt <> 'p1'")
    return text, left


def test_texts_of_rows_are_those_of_their_ids_after_a_filter_too(filtered):
    for folder, n in zip(filtered, (12, 6), strict=True):
        held = answers_of(folder)
        assert held.height == n
        index_of = texts.read(folder, "completions")
        prompts = texts.read(folder, "prompts")
        for key in ("completion_row", "completion_id", "prompt_row", "source", "category"):
            assert held[key].to_list() == index_of[key].to_list()
        assert ids.prompt_ids(held["prompt"]).to_list() == (
            texts.looked_up(held["prompt_row"], prompts, "prompt_id").to_list()
        )
        assert ids.completion_ids(ids.prompt_ids(held["prompt"]), held["completion"]).equals(held["completion_id"])
        asked = pl.Series([held["completion_row"][-1], None, held["completion_row"][0]], dtype=pl.UInt32)
        assert texts.completion_texts(folder, asked)["completion"].to_list() == held["completion"][[0, -1]].to_list()
        turns = texts.prompt_texts(folder, held["prompt_row"])
        assert turns["prompt_row"].to_list() == sorted(set(held["prompt_row"]))
        found = texts.looked_up(held["prompt_row"], turns, "prompt")
        assert found.to_list() == held["prompt"].to_list()
        by_chunk = pl.concat(list(texts.prompts_by_chunk(folder))).sort("prompt_row")
        assert by_chunk["prompt_row"].to_list() == prompts["prompt_row"].to_list()
        assert ids.prompt_ids(by_chunk["prompt"]).to_list() == prompts["prompt_id"].to_list()


def test_ids_and_lineage_of_rows_are_found_after_a_filter_too(filtered):
    _, left = filtered
    judgments = texts.read(left, "judgments")
    rows = judgments.select("prompt_row", "completion_row", judgment_rows=pl.concat_list("judgment_row"))
    found = texts.identify(rows, texts.names(left))
    held = dict(answers_of(left).select("completion_id", "completion").iter_rows())
    raw = {"first": RECORDS[:8], "second": RECORDS[4:]}
    for completion_id, (ref,) in found.select("completion_id", "raw_ref").iter_rows():
        file, _, record = ref.partition("#")
        assert raw[file.removesuffix("0.jsonl")][int(record)]["completion"] == held[completion_id]
    assert set(found.columns) == {"prompt_id", "completion_id", "raw_ref"}


def test_texts_of_no_rows_are_none(filtered):
    nothing = pl.Series([], dtype=pl.UInt32)
    for folder in filtered:
        assert texts.completion_texts(folder, nothing).height == texts.prompt_texts(folder, nothing).height == 0
        empty = pl.DataFrame(schema={"prompt_row": pl.UInt32, "chosen_row": pl.UInt32, "judgment_rows": tables.UINT32S})
        known = texts.identify(empty, texts.names(folder))
        assert (known.height, known.columns) == (0, ["prompt_id", "chosen_id", "raw_ref"])
        assert known.schema["raw_ref"] == pl.List(pl.String)


def test_a_text_folder_of_nothing_has_no_texts(tmp_path):
    folder = text_folder(tmp_path, {"s": [], "t": []})
    assert list(texts.completions_by_chunk(folder)) == list(texts.prompts_by_chunk(folder)) == []
    assert [texts.read(folder, name).height for name in texts.INDEXES] == [0, 0, 0]
    assert texts.missing_chunks(folder) == []


def test_a_pair_has_the_lineage_of_its_comparison_or_of_both_its_ratings(tmp_path):
    ratings = [{"completion": name, "source": source} for source in "st" for name in "abc"]
    given_pairs = [{"chosen": "b", "rejected": "a"}, {"chosen": "a", "rejected": "b", "source": "t"}]
    tables.write(rated(*ratings), tmp_path / "rated.parquet", "rated")
    tables.write(compared(*given_pairs, first=6), tmp_path / "compared.parquet", "compared")
    pairs = pl.DataFrame(
        {
            "chosen_row": [0, 0, 2, 1],
            "rejected_row": [1, 2, 1, 0],
            "source": ["t", "s", "t", "s"],
            "margin": [None, 1.0, 0.0, None],
        },
        schema_overrides={"chosen_row": pl.UInt32, "rejected_row": pl.UInt32, "source": pl.Categorical},
    )
    found = texts.with_judgments(pairs, texts.behind(tmp_path))
    assert found["judgment_rows"].to_list() == [[7], [0, 2], [5, 4], [6]]
    assert found.drop("judgment_rows").equals(pairs)
    assert texts.with_judgments(pairs[:0], texts.behind(tmp_path))["judgment_rows"].to_list() == []


def test_a_chunk_that_is_gone_or_short_is_missed(filtered, tmp_path):
    text = text_folder(tmp_path, {"s": RECORDS[:2]})
    (chunk,) = texts.chunks_of(text)
    assert texts.missing_chunks(text) == []
    path = chunk.path("refused")
    path.write_bytes(path.read_bytes()[:-1])
    assert texts.missing_chunks(text) == [chunk.folder]
    with pytest.raises(ValueError, match=r"refused\.parquet is damaged: remove .* and run again"):
        texts.read_chunk(chunk, "refused")


def test_names_of_the_tests_are_in_the_order_of_rows(tmp_path):
    text = index(tmp_path / "text")
    assert named(texts.read(text, "completions")["completion_row"]) == list("abcdef")
