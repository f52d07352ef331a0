"""A filter keeps the completions that its condition is true of, and the judgments that still make sense."""

import polars as pl
import pytest

from rlhf_data import ids, tables
from rlhf_data.clean.collect import collect
from rlhf_data.clean.filter import filter_completions

P, Q = "p" * 32, "q" * 32


def write(folder, completions, judgments=(), source="s"):
    """A folder of text: completions are (name, text, category), judgments (name, other)."""
    folder.mkdir()
    turns = [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "sys"}, {"role": "user", "content": "q"}],
    ]
    prompts = pl.DataFrame(
        {"prompt_id": [P, Q], "prompt": pl.Series(turns, dtype=ids.MESSAGES), "split_key": ["a", "b"]}
    )
    tables.write(prompts, folder / "prompts.parquet", "prompts")
    rows = [
        {
            "completion_id": n * 32,
            "prompt_id": Q if n == "q" else P,
            "completion": text,
            "category": c,
            "source": source,
        }
        for n, text, c in completions
    ]
    frame = pl.DataFrame(rows, infer_schema_length=None) if rows else tables.empty("completions")
    tables.write(frame, folder / "completions.parquet", "completions")
    heard = [
        {"prompt_id": P, "completion_id": n * 32, "other_id": o and o * 32, "kind": "comparison" if o else "rating"}
        | {"value": 1.0, "source": source, "raw_ref": f"f#{i}"}
        for i, (n, o) in enumerate(judgments)
    ]
    frame = pl.DataFrame(heard, infer_schema_length=None) if heard else tables.empty("judgments")
    tables.write(frame, folder / "judgments.parquet", "judgments")
    return folder


@pytest.fixture
def kept(tmp_path):
    """Names of completions and number of judgments that a condition leaves; the counts."""

    def kept(where, completions, judgments=()):
        folder = write(tmp_path / "in", completions, judgments)
        (tmp_path / "out").mkdir()
        counts = filter_completions({"text": folder}, tmp_path / "out", where=where, step="clean:1")
        names = tables.read(tmp_path / "out" / "completions.parquet", "completions")["completion_id"].str.head(1)
        return names.to_list(), tables.read(tmp_path / "out" / "judgments.parquet", "judgments").height, counts

    return kept


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("length(completion) > 1", ["b", "q"]),
        ("category = 'x'", ["a"]),  # of the others it is not true: one has another, one has none
        ("category <> 'x'", ["b"]),
        ("category IS NULL OR category = 'y'", ["b", "q"]),
        ("turns = 2", ["q"]),
        ("prompt = 'sys' || '\n\n' || 'q'", ["q"]),
        ("completion LIKE '%b'", ["b"]),
        ("turns / 0 = 1", []),
    ],
)
def test_what_a_condition_is_true_of_is_kept_and_null_is_false(where, names, kept):
    found, _, counts = kept(where, [("a", "a", "x"), ("b", "bb", "y"), ("q", "qq", None)])
    assert found == names
    assert sum(counts[0].filtered.values()) == 3 - len(names)


def test_judgments_go_with_either_of_their_completions(kept):
    judgments = [("a", None), ("b", None), ("a", "b"), ("b", "a"), ("a", "c")]
    _, heard, counts = kept("completion <> 'bb'", [("a", "a", None), ("b", "bb", None), ("c", "c", None)], judgments)
    assert heard == 2
    assert counts[1].filtered == {"of a completion with not (completion <> 'bb')": 3}


def test_a_condition_that_fails_on_a_row_is_an_error_that_names_it(kept):
    with pytest.raises(ValueError, match=r"clean:1: CAST\(completion AS INT\) > 1: "):
        kept("CAST(completion AS INT) > 1", [("a", "a", None)])


def test_of_two_sources_with_one_text_the_first_names_it_and_every_judgment_stays(tmp_path):
    first = write(tmp_path / "1", [("a", "a", "x")], [("a", None)], source="first")
    second = write(tmp_path / "2", [("a", "a", "y"), ("b", "b", "y")], [("a", None), ("b", None)], source="second")
    for name, inputs, source in (("o", [first, second], "first"), ("r", [second, first], "second")):
        (out := tmp_path / name).mkdir()
        counts = collect({folder.name: folder for folder in inputs}, out)
        completions = tables.read(out / "completions.parquet", "completions").sort("completion_id")
        assert completions["source"].to_list() == [source, "second"]
        assert tables.read(out / "prompts.parquet", "prompts").height == 2
        assert tables.read(out / "judgments.parquet", "judgments").height == 3
        assert [c.merged for c in counts] == [{"in several sources": 2}, {"in several sources": 1}]
