import pytest

from rlhf_data.sources import mapping

PAIR = {"prompt": "p", "completion": "a", "other": "b"}
USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "r"}


def values(found):
    return found.judgments["value"].to_list()


def test_texts_and_a_rating_become_rated_completions(run):
    found = run(
        [{"q": "hi", "a": "yes", "s": 3}, {"q": "hi", "a": "", "s": 2.5}],
        columns={"prompt": "q", "completion": "a", "rating": "s", "annotator": {"value": "me"}},
    )
    assert found.completions["completion"].to_list() == ["yes", ""]
    assert values(found) == [3.0, 2.5]
    assert found.judgments["annotator"].to_list() == ["me", "me"]
    assert found.judgments["raw_ref"].to_list() == ["raw.jsonl#0", "raw.jsonl#1"]
    assert found.prompts["prompt"].to_list() == [[{"role": "user", "content": "hi"}]]


def test_chosen_and_rejected_are_a_certain_comparison(run):
    found = run([{"prompt": "p", "chosen": "a", "rejected": "b"}])  # the names are ours already
    assert found.judgments.select("kind", "value").rows() == [("comparison", 1.0)]


def test_a_map_gives_values_their_meaning_and_refuses_the_others(run):
    rows = [{"p": "p", "a": f"a{i}", "b": "b", "w": w} for i, w in enumerate(["A", "B", "tie", "?", None, "skip"])]
    found = run(rows, columns={**PAIR, "preference": {"from": "w", "map": {"A": 1, "B": 0, "tie": 0.5, "skip": None}}})
    assert values(found) == [1.0, 0.0, 0.5]
    assert found.quarantine.select("code", "detail").rows() == [("value.unmapped", "w=?"), ("verdict.missing", None)]
    assert found.records.filtered == {"value.left_out": 1}


@pytest.mark.parametrize(("good", "key"), [(True, True), (1, 1), ("1", 1), ("true", True), (1.0, 1)])
def test_the_keys_of_a_map_may_be_written_as_yaml_likes(good, key, run):
    columns = {"prompt": "p", "completion": "a", "label": {"from": "g", "map": {key: True}}}
    found = run([{"p": "p", "a": "a", "g": good}], columns=columns)
    assert values(found) == [1.0]


def test_a_rating_that_is_no_number_is_refused_by_name(run):
    rows = [{"p": "p", "a": str(i), "s": s} for i, s in enumerate([" 4", "N/A", "nan", None])]
    found = run(rows, columns={"prompt": "p", "completion": "a", "rating": "s"})
    assert values(found) == [4.0]
    assert found.codes() == ["rating.not_a_number", "value.not_finite", "rating.missing"]
    assert found.quarantine["detail"][0] == "s=N/A"


def test_a_label_that_is_neither_yes_nor_no_is_refused(run):
    rows = [{"p": "p", "a": str(i), "g": g} for i, g in enumerate([1, 0, 2])]
    found = run(rows, columns={"prompt": "p", "completion": "a", "label": "g"})
    assert values(found) == [1.0, 0.0]
    assert found.codes() == ["value.unmapped"]


def test_polarity_turns_a_rating_round(run):
    columns = {"prompt": "p", "completion": "a", "rating": {"from": "e", "polarity": "lower_is_better"}}
    assert values(run([{"p": "p", "a": "a", "e": 3}], columns=columns)) == [-3.0]


def test_each_makes_a_wide_row_long_and_absent_answers_are_no_damage(run):
    columns = {
        "prompt": "q",
        "each": [
            {"completion": "a1", "rating": "s1", "model": {"value": "m1"}},
            {"completion": "a2", "rating": "s2", "model": {"value": "m2"}},
        ],
    }
    found = run([{"q": "x", "a1": "u", "s1": 1, "a2": "v", "s2": 2}, {"q": "y", "a1": "w", "s1": 3}], columns=columns)
    assert values(found) == [1.0, 2.0, 3.0]
    assert found.completions["model"].to_list() == ["m1", "m2", "m1"]
    assert found.observations.filtered == {"entry.absent": 1}
    assert found.records.out == 2


def test_ratings_by_aspect_are_rows_of_their_own(run):
    columns = {"prompt": "p", "completion": "a", "rating": {"helpful": "h", "honest": {"from": "t", "map": {"hi": 5}}}}
    found = run([{"p": "p", "a": "a", "h": 2, "t": "hi"}], columns=columns)
    assert found.judgments.select("aspect", "value").rows() == [("helpful", 2.0), ("honest", 5.0)]


def test_joined_texts_leave_blank_parts_out(run):
    rows = [{"i": "do", "n": " ", "a": "x"}, {"i": "do", "n": "this", "a": "x"}, {"i": None, "n": None, "a": "x"}]
    found = run(rows, columns={"prompt": {"concat": ["i", "n"]}, "completion": "a"})
    assert [prompt[0]["content"] for prompt in found.prompts["prompt"].to_list()] == ["do", "do\n\nthis"]
    assert found.codes() == ["prompt.missing"]


def test_a_system_prompt_stands_first_and_a_blank_one_is_none(run):
    rows = [{"s": "be", "p": "p", "a": "a"}, {"s": "", "p": "p", "a": "a"}]
    found = run(rows, columns={"prompt": "p", "system": "s", "completion": "a"})
    assert [[m["role"] for m in prompt] for prompt in found.prompts["prompt"].to_list()] == [
        ["system", "user"],
        ["user"],
    ]


def test_messages_of_other_names_and_the_answer_that_is_their_last(run):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
    names = {"role": "from", "content": "value"}
    columns = {
        "prompt": {"from": "c", **names, "roles": {"human": "user", "gpt": "assistant"}},
        "completion": {"last_of": "c", **names},
        "label": "good",
    }
    found = run([{"c": turns, "good": True}, {"c": turns[:1], "good": True}], columns=columns)
    assert found.prompts["prompt"].to_list() == [[USER]]
    assert found.completions["completion"].to_list() == ["r"]
    assert found.codes() == ["prompt.missing"]


def test_whole_conversations_must_differ_in_their_last_message_only(run):
    columns = {"prompt": "c", "chosen": {"last_of": "c"}, "rejected": {"last_of": "d"}}
    good, other = [USER, REPLY], [USER, {**REPLY, "content": "s"}]
    found = run([{"c": good, "d": other}, {"c": good, "d": [REPLY, *other]}], columns=columns)
    assert found.completions["completion"].to_list() == ["r", "s"]
    assert found.codes() == ["prompt.mismatch"]


def test_a_category_may_be_a_number_and_a_note_may_be_mapped(run):
    columns = {"prompt": "p", "completion": "a", "category": {"from": "k", "map": {1: "code"}}, "annotator": "w"}
    found = run([{"p": "p", "a": "a", "k": 1, "w": 7}, {"p": "p", "a": "b", "k": 2, "w": "x"}], columns=columns)
    assert found.completions["category"].to_list() == ["code", "2"]
    assert found.judgments["annotator"].to_list() == ["7", "x"]


@pytest.mark.parametrize(
    ("columns", "place", "told"),
    [
        ({"promt": "p", "completion": "a"}, ("promt",), "did you mean 'prompt'"),
        ({"completion": "a"}, (), "has no prompt"),
        ({"prompt": "p"}, (), "has no completion"),
        ({"prompt": "p", "chosen": "a"}, (), "both of chosen and rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "rating": "s"}, (), "could be of either"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "completion": "s"}, (), "one row is one or the other"),
        ({"prompt": "p", "completion": "a", "other": "b"}, (), "no preference says which won"),
        ({"prompt": "p", "completion": "a", "preference": "b"}, (), "nothing that the completion was compared with"),
        ({"prompt": 3, "completion": "a"}, ("prompt",), "must be a column's name or one of"),
        ({"prompt": {"form": "p"}, "completion": "a"}, ("prompt",), "exactly one of from, last_of, concat, value"),
        ({"prompt": {"from": "p", "mapp": {}}, "completion": "a"}, ("prompt", "mapp"), "is unknown beside `from`"),
        ({"prompt": "p", "completion": {"from": "a", "map": {1: "x"}}}, ("completion", "map"), "are not mapped"),
        (
            {"prompt": "p", "completion": "a", "rating": {"from": "s", "polarity": "low"}},
            ("rating", "polarity"),
            "lower_is",
        ),
        (
            {"prompt": "p", "completion": "a", "label": {"from": "s", "map": {"y": "yes"}}},
            ("label", "map"),
            "to numbers",
        ),
        (
            {"prompt": "p", "completion": "a", "rating": {"x": {"value": "3"}}},
            ("rating", "x", "value"),
            "must be a number",
        ),
        ({"prompt": "p", "each": []}, ("each",), "a list of mappings"),
        ({"prompt": "p", "each": [{"completion": "a"}, {"rating": "s"}]}, ("each", 1), "has no completion"),
        ("prompt", (), "must be a mapping"),
    ],
)
def test_a_mapping_with_a_fault_is_told_where_and_what(columns, place, told):
    ((where, message),) = mapping.problems(columns)
    assert where == place
    assert told in message


def test_a_mapping_asks_only_for_its_columns_and_misses_absent_ones():
    columns = {"prompt": "data.p", "completion": "a", "rating": {"x": "s", "y": {"from": "t"}}}
    assert mapping.mapped_columns(columns) == {"data.p", "a", "s", "t"}
    assert [where for where, _ in mapping.check_columns(columns, {"data": None, "aa": None, "s": None})] == [
        ("completion",),
        ("rating", "y"),
    ]
