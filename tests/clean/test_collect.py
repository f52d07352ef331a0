"""All sources together: each text once, named by the first that holds it; every judgment kept; rows in order of ids."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import ids, texts
from rlhf_data.clean.collect import collect
from tests.rows import answers_of, read_sources, text_folder

few = settings(deadline=None, max_examples=10)
record = st.fixed_dictionaries(
    {"prompt": st.sampled_from("pqr"), "completion": st.sampled_from("abc"), "rating": st.integers(1, 5)},
    optional={"model": st.sampled_from([None, "m", "n"]), "category": st.sampled_from([None, "x", "y"])},
)
verdict = st.fixed_dictionaries(
    {"prompt": st.sampled_from("pq"), "completion": st.just("a"), "other": st.sampled_from("bc")}
).map(lambda row: row | {"preference": 1.0})
sources = st.fixed_dictionaries({}, optional={name: st.lists(record | verdict, max_size=6) for name in ("s", "t", "u")})


def identity(prompt: str, completion: str) -> tuple[str, str]:
    (prompt_id,) = ids.prompt_ids(pl.Series([[{"role": "user", "content": prompt}]], dtype=ids.MESSAGES))
    return prompt_id, ids.completion_ids(pl.Series([prompt_id]), pl.Series([completion]))[0]


@few
@given(given=sources.filter(bool))
def test_what_is_collected_is_what_a_dictionary_would_hold(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collect")
    held: dict[tuple[str, str], dict] = {}
    heard = []
    for source, records in given.items():
        kinds: dict[tuple, list] = {}
        for row in records:  # as they lie in the raw files: one for each kind of record
            kinds.setdefault(tuple(row), []).append(row)
        for row in (row for kind in kinds.values() for row in kind):
            for side in ("completion", "other"):
                if side in row:
                    key = identity(row["prompt"], row[side])
                    model = row.get("model") if side == "completion" else None
                    known = held.setdefault(key, {"source": source, "category": row.get("category"), "model": None})
                    known["model"] = known["model"] or model
            heard.append((source, identity(row["prompt"], row["completion"])[1], row.get("rating", 1.0)))
    text = text_folder(folder, given)
    completions, prompts = texts.read(text, "completions"), texts.read(text, "prompts")
    named = texts.looked_up(completions["prompt_row"], prompts, "prompt_id")
    keys = list(zip(named, completions["completion_id"], strict=True))
    assert keys == sorted(held)
    assert completions["completion_row"].to_list() == list(range(len(held)))
    assert prompts["prompt_id"].to_list() == sorted({prompt_id for prompt_id, _ in held})
    for key, row in zip(keys, completions.to_dicts(), strict=True):
        assert {name: row[name] for name in ("source", "category", "model")} == held[key]
    judgments = texts.read(text, "judgments")
    of = texts.looked_up(judgments["completion_row"], completions, "completion_id")
    assert sorted(zip(judgments["source"], of, judgments["value"], strict=True)) == sorted(heard)
    assert judgments["judgment_row"].to_list() == list(range(len(heard)))
    assert judgments["completion_row"].is_sorted()


def test_a_model_that_only_a_later_source_names_is_taken_from_there(tmp_path):
    row = {"prompt": "p", "completion": "a", "rating": 1}
    text = text_folder(tmp_path, {"s": [row], "t": [row | {"model": "m", "category": "x"}]})
    (found,) = answers_of(text).to_dicts()
    assert (found["source"], found["model"], found["category"]) == ("s", "m", None)


def test_a_source_without_records_changes_nothing(tmp_path):
    row = {"prompt": "p", "completion": "a", "rating": 1}
    given = read_sources(tmp_path, {"empty": [], "s": [row]})
    for names in (["s"], ["empty", "s"], ["s", "empty"]):
        (out := tmp_path / "out" / "-".join(names)).mkdir(parents=True)
        collect({name: given[name] for name in names}, out)
    found = [texts.read(tmp_path / "out" / name, "judgments") for name in ("s", "empty-s", "s-empty")]
    assert found[0].equals(found[1]) and found[0].equals(found[2])
