"""A filter keeps the completions that its condition is true of, and the judgments that still make sense."""

import pytest

from rlhf_data import texts
from rlhf_data.clean.collect import collect
from rlhf_data.clean.filter import filter_completions
from tests.rows import answers_of, read_sources, text_folder

HI = [{"role": "user", "content": "hi"}]
ASKED = [{"role": "system", "content": "sys"}, {"role": "user", "content": "q"}]


def records(completions, judgments=()) -> list[dict]:
    """Records of (name, text, category) that are rated, and of (name, name or None) that are judged."""
    asked = {name: ASKED if name == "q" else HI for name, *_ in completions}
    text = {name: text for name, text, _ in completions}
    held = [
        {"prompt": asked[name], "completion": text, "category": category, "rating": 1.0}
        for name, text, category in completions
    ]
    return held + [
        {"prompt": asked[one], "completion": text[one]}
        | ({"rating": 1.0} if other is None else {"other": text[other], "preference": 1.0})
        for one, other in judgments
    ]


@pytest.fixture
def kept(tmp_path):
    """Names of completions and number of judgments that a condition leaves; the counts."""

    def kept(where, completions, judgments=()):
        folder = text_folder(tmp_path, {"s": records(completions, judgments)})
        (out := tmp_path / "out").mkdir()
        counts = filter_completions({"text": folder}, out, where=where, step="clean:1")
        left = set(answers_of(out)["completion"]) if texts.read(out, "completions").height else set()
        return [name for name, text, _ in completions if text in left], texts.read(out, "judgments").height, counts

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
    judgments = [("a", "b"), ("b", "a"), ("a", "c")]  # besides, each is rated
    _, heard, counts = kept("completion <> 'bb'", [("a", "a", None), ("b", "bb", None), ("c", "c", None)], judgments)
    assert heard == 3
    assert counts[1].filtered == {"of a completion with not (completion <> 'bb')": 3}


def test_a_condition_that_fails_on_a_row_is_an_error_that_names_it(kept):
    with pytest.raises(ValueError, match=r"clean:1: CAST\(completion AS INT\) > 1: "):
        kept("CAST(completion AS INT) > 1", [("a", "a", None)])


def test_nothing_to_keep_is_nothing_left(kept):
    names, heard, counts = kept("length(completion) > 1", [])
    assert (names, heard, [count.rows_in for count in counts]) == ([], 0, [0, 0])


def test_of_two_sources_with_one_text_the_first_names_it_and_every_judgment_stays(tmp_path):
    sources = {"first": records([("a", "a", "x"), ("q", "q", "x")])}
    sources["second"] = records([("a", "a", "y"), ("b", "b", "y"), ("q", "r", "y")])
    given = read_sources(tmp_path, sources)
    for names in (["first", "second"], ["second", "first"]):
        (out := tmp_path / "-".join(names)).mkdir()
        counts = collect({name: given[name] for name in names}, out)
        found = {row["completion"]: (row["source"], row["category"]) for row in answers_of(out).to_dicts()}
        of_both = (names[0], "x" if names[0] == "first" else "y")
        assert found == {"a": of_both, "b": ("second", "y"), "q": ("first", "x"), "r": ("second", "y")}
        assert texts.read(out, "prompts").height == 2
        judgments = texts.read(out, "judgments")
        assert sorted(judgments["source"].cast(str)) == ["first"] * 2 + ["second"] * 3
        assert [c.merged for c in counts] == [{"in several sources": 2}, {"in several sources": 1}]
