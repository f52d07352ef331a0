import json
from pathlib import Path

import pytest

from rlhf_data import sources
from rlhf_data.cli import run_command
from rlhf_data.sources import mapping
from rlhf_data.sources.samples import FORMS, make
from rlhf_data.sources.sniff import sniff
from rlhf_data.spec.read import read


def drafted(path, tmp_path):
    draft = tmp_path / "draft.yaml"
    draft.write_text(sniff(path))
    spec, _ = read(draft)
    return next(iter(spec.sources.values())), spec


@pytest.mark.parametrize(
    ("file", "adapter"),
    [
        ("hh_rlhf_harmless/test.jsonl.gz", "hh_rlhf"),
        ("llmbar/Natural.json", "llmbar"),
        ("pandalm/testset-v1.json", "pandalm"),
        ("oasst_en_100/en_100_tree.jsonl", "oasst"),
        ("llamafactory_kto_en_demo/kto_en_demo.json", "llamafactory_kto"),
    ],
)
def test_a_known_file_is_drafted_with_its_adapter(file, adapter, raw, tmp_path):
    source, _ = drafted(raw / file, tmp_path)
    assert source.adapter == adapter


@pytest.mark.parametrize("form", FORMS)
def test_a_public_set_is_drafted_with_its_adapter(form, tmp_path):
    source, _ = drafted(make(form, tmp_path / "raw.jsonl", 60), tmp_path)
    assert source.adapter == form
    wrong = sources.check_options(form, source.options)
    assert wrong == []


def test_a_rated_conversation_is_no_demonstration(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"instruction": "q", "input": "", "output": "a", "rating": 3}))
    source, _ = drafted(path, tmp_path)
    assert source.adapter is None
    assert source.columns["rating"] == "rating"


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "answer": "a", "score": 3},
        {"Prompt": "q", "Response": "a", "thumbs_up": True},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "s"}]},
        {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "s"}]},
        {"conversations": SHAREGPT, "rating": 1},
        {"instruction": "q", "response_a": "a", "response_b": "b", "preference": 0.5},
        {"messages": MESSAGES[:1], "chosen": MESSAGES[1], "rejected": {"role": "assistant", "content": "x"}},
    ],
    ids=lambda record: "-".join(record),
)
def test_the_draft_of_a_common_shape_reads_its_file(record, run, tmp_path):
    path = tmp_path / "my data.jsonl"
    path.write_text(json.dumps(record))
    source, _ = drafted(path, tmp_path)
    assert mapping.problems(source.columns) == []
    assert run(path, columns=source.columns).records.out == 1


@pytest.mark.parametrize("name", ["2024-05-01", "2024", "1e5", "null", "no", "0x1F"])
def test_a_file_that_is_named_like_no_text_is_drafted_too(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.jsonl").write_text('{"prompt": "q", "completion": "a", "rating": 3}')
    Path("s.yaml").write_text(sniff(f"{name}.jsonl"))
    assert run_command(["check", "s.yaml"]) == 0, capfd.readouterr().err


def test_what_was_not_recognised_is_shown_and_values_are_never_guessed(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("question,answer,label,odd\nq,a,good,1\nq,b,bad,2\n")
    text = sniff(path)
    assert "# not used: odd (String)" in text
    assert "which value means what?" in text
    assert "# bad" in text


def test_an_empty_file_cannot_be_drafted(tmp_path):
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no records"):
        sniff(tmp_path / "r.jsonl")
