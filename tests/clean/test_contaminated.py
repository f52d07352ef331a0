"""A text is contaminated when it holds a run of words of an evaluation file, whatever the file's form."""

import json
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.clean import contaminated
from rlhf_data.clean.ngrams import normalised

QUESTION = "A train leaves the station at noon and travels sixty miles an hour for three hours; how far does it go?"
WORDS = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


def write(folder, suffix):
    """One evaluation file of a kind, with a long and a short text, deep inside where the kind has an inside."""
    path = folder / f"eval{suffix}"
    record = {"id": 7, "question": {"parts": [QUESTION, None, 3]}, "answer": "Four words at most"}
    flat = {"question": QUESTION, "answer": "Four words at most"}
    if suffix == ".json":
        path.write_text(json.dumps({"data": [record]}), encoding="utf-8-sig")
    elif suffix == ".jsonl":
        path.write_text(f"{json.dumps(record)}\n\n", encoding="utf-8")
    elif suffix in (".csv", ".tsv"):
        pl.DataFrame(flat).write_csv(path, separator="\t" if suffix == ".tsv" else ",", quote_style="always")
    elif suffix == ".parquet":
        pl.DataFrame([{"id": 7, "question": {"parts": [QUESTION]}, "answer": flat["answer"]}]).write_parquet(path)
    else:
        path.write_text(f"{QUESTION.replace('noon and', f'noon{chr(10)}and')}\nFour words at most\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", contaminated.SUFFIXES)
def test_every_text_of_every_kind_of_file_is_looked_for(suffix, tmp_path):
    index = contaminated.index([write(tmp_path, suffix)])
    texts = [
        f"Solve this, please. {QUESTION.upper()} Thank you.",
        QUESTION.replace(" ", "  ").replace(";", ""),
        " ".join(QUESTION.split()[:13]),
        " ".join(QUESTION.split()[:12]),  # one word short
        "four words, at most!",
        "I know four words at most of it",  # more than the short text
        "words at most",
    ]
    name = f"eval{suffix}"
    assert contaminated.hits(texts, index).rows() == [(0, name), (1, name), (2, name), (4, name)]
    assert contaminated.hits(texts, index, whole=False)["row"].to_list() == [0, 1, 2]


def spelt(text):
    return re.findall(r"\w+", normalised(text))


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(st.lists(WORDS, max_size=3), min_size=1, max_size=3), st.integers(1, 5))
def test_hits_are_those_of_comparing_every_run_with_every_run(tmp_path_factory, texts, files, n):
    folder = tmp_path_factory.mktemp("evals")
    paths = []
    for k, leaves in enumerate(files):
        paths.append(folder / f"{k}.json")
        paths[-1].write_text(json.dumps(leaves), encoding="utf-8")

    def runs(text):
        words = spelt(text)
        return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)} or ({tuple(words)} - {()})

    wanted = [
        (row, path.name)
        for row, text in enumerate(texts)
        for path, leaves in zip(paths, files, strict=True)
        if any(runs(text) & runs(leaf) for leaf in leaves)
    ]
    assert contaminated.hits(texts, contaminated.index(paths, n)).rows() == wanted


def test_chinese_runs_are_of_characters(tmp_path):
    (tmp_path / "e.txt").write_text("床前明月光疑是地上霜举头望明月低头思故乡", encoding="utf-8")
    texts = ["他念道:床前明月光,疑是地上霜。举头望明月!", "床前明月光,疑是地上霜。"]
    assert contaminated.hits(texts, contaminated.index([tmp_path / "e.txt"]))["row"].to_list() == [0]


def test_texts_in_several_batches_keep_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(contaminated, "_CHARACTERS", 30)
    index = contaminated.index([write(tmp_path, ".jsonl"), write(tmp_path, ".txt")])
    found = contaminated.hits(["nothing", QUESTION, "", "nothing of it", QUESTION, ""], index)
    assert found.rows() == [(1, "eval.jsonl"), (1, "eval.txt"), (4, "eval.jsonl"), (4, "eval.txt")]


def test_texts_without_words_are_in_no_file(tmp_path):
    (tmp_path / "e.json").write_text('["", "...", " ", {"a": []}]', encoding="utf-8")
    index = contaminated.index([tmp_path / "e.json"])
    assert index.hashes.size == 0
    assert contaminated.hits(["", "...", "!"], index).is_empty()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.yaml", b"a: b", "use one of .jsonl, .json, .csv, .tsv, .parquet, .txt"),
        ("e.jsonl", b"{not json}", "e.jsonl: cannot be read: Expecting property name"),
        ("e.txt", b"\xff\xfe\xfa", "e.txt: cannot be read: 'utf-8' codec"),
        ("e.parquet", b"PAR", "e.parquet: cannot be read"),
        ("absent.txt", None, "absent.txt: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        contaminated.index([tmp_path / name])
