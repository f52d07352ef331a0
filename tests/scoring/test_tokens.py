"""Stored token ids are those of `encode`, are read without a tokenizer, and are never taken for others."""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import files
from rlhf_data.scoring import tokens
from rlhf_data.scoring.encode import encode
from rlhf_data.scoring.tokens import Groups, Ragged, Tokens, read_tokens
from tests import tiny_model
from tests.training.snapshots import MESSAGES, user

LENGTHS: dict[str, Any] = {"template": "chat", "max_length": 24, "max_prompt_length": 18}
TOKENIZER = tiny_model.tokenizer()
text = st.sampled_from(["", "yes", "no, never", "a very long answer that goes on and on, to no end", "<|im_end|>", "é"])


def columns(rows: list[tuple[str, ...]]) -> dict[str, pa.ChunkedArray]:
    """(prompt, chosen, rejected) of each row."""
    made = {"prompt": pa.array([user(row[0]) for row in rows], MESSAGES)}
    for at, side in enumerate(("chosen", "rejected"), start=1):
        made[side] = pa.array([row[at] for row in rows], pa.string())
    return {name: pa.chunked_array([array]) for name, array in made.items()}


class Untouchable:
    """A tokenizer that knows its vocabulary, and fails where it is used."""

    def __init__(self, size: int = 384) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, *_, **__):
        raise AssertionError("the tokenizer was called")

    def __getattr__(self, name: str):
        raise AssertionError(f"the tokenizer was asked for its {name}")


def assert_same(ours: Tokens, theirs: Tokens) -> None:
    assert np.array_equal(ours.prompt, theirs.prompt)
    assert np.array_equal(ours.ids.values, theirs.ids.values) and np.array_equal(ours.ids.offsets, theirs.ids.offsets)
    for side in theirs.completions:
        assert np.array_equal(ours.completions[side], theirs.completions[side])
        assert np.array_equal(ours.truncated[side], theirs.truncated[side])
        assert ours.refused[side].tolist() == theirs.refused[side].tolist()


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(text, text, text), min_size=1, max_size=12), part=st.integers(1, 5))
def test_every_row_has_the_ids_and_codes_that_encode_gives_it(rows, part):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokens, "_PART_ROWS", part)
        made = read_tokens(columns(rows), len(rows), TOKENIZER, **LENGTHS)
    for at, side in enumerate(("chosen", "rejected"), start=1):
        told = encode(TOKENIZER, [user(row[0]) for row in rows], [row[at] for row in rows], **LENGTHS)
        assert made.refused[side].tolist() == told.refused
        assert made.truncated[side].tolist() == told.truncated
        assert made.lengths(side).tolist() == [len(ids) for ids in told.completion_ids]
        for i, refused in enumerate(told.refused):
            if refused is None:
                assert made.ids[made.prompt[i]].tolist() == told.prompt_ids[i]
                assert made.ids[made.completions[side][i]].tolist() == told.completion_ids[i]
            else:
                assert made.completions[side][i] == -1
    same = made.completions["chosen"] == made.completions["rejected"]
    assert all(same[i] for i, row in enumerate(rows) if row[1] == row[2])


def test_a_prompt_and_an_answer_are_kept_once_however_many_pairs_they_stand_in():
    answers = ["yes", "no", "perhaps"]
    rows = [("well?", a, b) for a in answers for b in answers if a != b]
    made = read_tokens(columns(rows), len(rows), TOKENIZER, **LENGTHS)
    assert len(made.ids) == 1 + len(answers)
    assert made.ids.values.dtype == np.uint16


def test_a_vocabulary_beyond_16_bits_is_kept_in_32(monkeypatch):
    large = tiny_model.tokenizer()
    monkeypatch.setattr(type(large), "__len__", lambda self: 70_000)
    assert read_tokens(columns([("a", "b", "c")]), 1, large, **LENGTHS).ids.values.dtype == np.uint32


ROWS = [(f"question {i}?", f"yes {i}", f"no {i}") for i in range(10)]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Ten rows in parts of four, stored."""
    monkeypatch.setattr(tokens, "_PART_ROWS", 4)
    place = tmp_path / "tokens" / "train"
    return place, read_tokens(columns(ROWS), len(ROWS), TOKENIZER, stored=place, **LENGTHS)


def test_stored_ids_are_read_without_the_tokenizer(stored):
    place, made = stored
    assert sorted(path.name for path in place.parent.iterdir()) == [
        *(f"train-0000{k}.parquet" for k in range(3)),
        "train.json",
    ]
    assert_same(read_tokens(columns(ROWS), len(ROWS), Untouchable(), stored=place, **LENGTHS), made)  # type: ignore[arg-type]


def test_a_kill_costs_the_part_at_hand_and_nothing_else(stored, monkeypatch):
    place, made = stored
    for path in place.parent.iterdir():
        path.unlink()
    real, calls = tokens._encoded, []

    def dies_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tokens, "_encoded", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        read_tokens(columns(ROWS), len(ROWS), TOKENIZER, stored=place, **LENGTHS)
    assert_same(read_tokens(columns(ROWS), len(ROWS), TOKENIZER, stored=place, **LENGTHS), made)
    assert len(calls) == 4


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "gone", "manifest gone", "manifest cut short"])
def test_a_damaged_part_is_made_again(damage, stored):
    place, made = stored
    part = place.with_name("train-00001.parquet")
    whole = part.read_bytes()
    if damage == "other bytes":
        part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    elif damage == "cut short":
        part.write_bytes(whole[:-7])
    elif damage == "gone":
        part.unlink()
    elif damage == "manifest gone":
        place.with_name("train.json").unlink()
    else:
        place.with_name("train.json").write_text('{"sides"')
    assert_same(read_tokens(columns(ROWS), len(ROWS), TOKENIZER, stored=place, **LENGTHS), made)
    assert part.read_bytes() == whole
    assert_same(read_tokens(columns(ROWS), len(ROWS), Untouchable(), stored=place, **LENGTHS), made)  # type: ignore[arg-type]


def test_texts_are_not_needed_where_all_ids_are_stored(stored):
    place, made = stored
    assert tokens.complete(place)
    without: dict[str, None] = dict.fromkeys(("prompt", "chosen", "rejected"))
    assert_same(read_tokens(without, len(ROWS), Untouchable(), stored=place, **LENGTHS), made)  # type: ignore[arg-type]
    place.with_name("train-00002.parquet").unlink()
    assert not tokens.complete(place)
    with pytest.raises(ValueError, match="was removed or damaged while it was read: start again"):
        read_tokens(without, len(ROWS), TOKENIZER, stored=place, **LENGTHS)


def published(tmp_path, rows: str = "r"):
    """A snapshot with its model, as far as the place of its ids depends on them."""
    model, snapshot = tmp_path / "model", tmp_path / "snapshots" / "demo" / "20260101T000000Z-abc"
    (snapshot / "data").mkdir(parents=True, exist_ok=True)
    (snapshot.parent / "refs").mkdir(exist_ok=True)
    model.mkdir(exist_ok=True)
    (model / "tokenizer.json").write_text("{}")
    return snapshot, {"id": snapshot.name, "content_hash": rows}, {"path": str(model)}


def test_ids_stand_beside_their_snapshot_under_all_that_decides_them(tmp_path):
    snapshot, manifest, model = published(tmp_path)
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages }}")

    def place(rows: str = "r", **changed: Any):
        options: dict[str, Any] = {**LENGTHS, "cache": tmp_path / "cache", **changed}
        return tokens.folder(snapshot, manifest | {"content_hash": rows}, "train", model=model, **options)

    first = place()
    assert first.parent == snapshot.parent / "tokens" / snapshot.name
    assert place() == first
    others = [place(rows="other"), place(max_length=25), place(max_prompt_length=17), place(template="plain")]
    others.append(place(template=str(mine)))
    mine.write_text("{{ messages }} ")
    others.append(place(template=str(mine)))
    (tmp_path / "model" / "tokenizer.json").write_text('{"a": 1}')
    others.append(place())
    assert len({first, *others}) == 8


def test_ids_stand_in_the_cache_where_the_snapshot_lies_alone_or_its_folder_cannot_be_written(tmp_path, monkeypatch):
    snapshot, manifest, model = published(tmp_path)
    options: dict[str, Any] = {**LENGTHS, "cache": tmp_path / "cache"}
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert tokens.folder(snapshot, manifest, "train", model=model, **options).is_relative_to(tmp_path / "cache")
    (snapshot.parent / "refs").rmdir()
    assert tokens.folder(snapshot, manifest, "train", model=model, **options).is_relative_to(tmp_path / "cache")


def test_without_a_content_hash_changed_rows_have_another_place(tmp_path):
    snapshot, manifest, model = published(tmp_path)
    manifest.pop("content_hash")
    options: dict[str, Any] = {**LENGTHS, "cache": tmp_path / "cache"}
    file = snapshot / "data" / "train-00000-of-00001.parquet"
    places = []
    for content in ("one", "other"):
        files.write_text(file, content)
        places.append(tokens.folder(snapshot, manifest, "train", model=model, **options))
    assert places[0] != places[1]


def test_groups_are_views_and_know_their_tokens():
    ids = Ragged(np.array([1, 2, 3, 4, 5, 6], np.uint16), np.array([0, 2, 3, 6]))
    groups = Groups(ids, np.array([0, 0]), np.array([[1, 2], [2, 1]]))
    prompt, completions = groups[1]
    assert prompt.tolist() == [1, 2] and [one.tolist() for one in completions] == [[4, 5, 6], [3]]
    assert np.shares_memory(prompt, ids.values)
    assert [len(group.completions) for group in groups] == [2, 2]
