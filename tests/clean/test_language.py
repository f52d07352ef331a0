"""The language of a text is named with how sure that is; texts without letters have none."""

import sys

import polars as pl
import pytest

from rlhf_data.clean import language

SENTENCES = {
    "de": "Wie spät ist es gerade in Berlin?",
    "fr": "Quelle heure est-il à Paris en ce moment ?",
    "es": "¿Cuál es la capital de España?",
    "ru": "Какая сегодня погода?",
    "ja": "今日の天気はどうですか。",
    "ko": "오늘 날씨가 어때요?",
    "it": "Scrivi una poesia sul mare.",
    "nl": "Schrijf een gedicht over de zee.",
    "ar": "اكتب قصيدة عن البحر",
    "en": "Write a poem about the sea.",
    "zh": "写一首关于大海的诗。",
    "vi": "Viết một bài thơ về biển.",
}


@pytest.fixture(autouse=True)
def model():
    pytest.importorskip("fasttext", reason="the extra `lang` is not installed")


@pytest.mark.parametrize(("code", "text"), SENTENCES.items(), ids=SENTENCES)
def test_a_sentence_is_in_its_language_and_so_are_its_capitals(code, text):
    found = language.languages([text, text.upper(), f"\n{text}\n\0"])
    assert found["language"].to_list() == [code] * 3
    assert found["confidence"].min() > 0.6


def test_real_english_and_chinese_answers_are_told_apart(raw_answers):
    for code, texts in raw_answers.items():
        found = language.languages(texts)
        assert (found["language"] == code).mean() > 0.95


@pytest.fixture
def raw_answers():
    import json
    import os
    from pathlib import Path

    raw = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))
    if not raw.is_dir():
        pytest.skip(f"no raw data at {raw}; set RLHF_DATA_RAW")
    records = {
        code: json.loads(next((raw / f"llamafactory_dpo_{code}_demo").glob("*.json")).read_text(encoding="utf-8"))
        for code in ("en", "zh")
    }
    return {code: [record["chosen"]["value"] for record in held] for code, held in records.items()}


def test_texts_without_letters_have_no_language():
    found = language.languages(["", " \n", "12 + 37 = ?", "🙂", "___"])
    assert found["language"].to_list() == [None] * 5
    assert found["confidence"].to_list() == [0.0] * 5


def test_a_text_is_judged_by_its_first_thousand_characters():
    text = f"{SENTENCES['en']} " * 50
    assert language.languages([text]).equals(language.languages([text + SENTENCES["ru"] * 100]))


def test_a_text_is_kept_or_the_reason_is_said():
    found = pl.DataFrame(
        {"language": ["en", "de", "en", "de", None], "confidence": [0.9, 0.9, 0.4, 0.4, 0.0]},
    )
    kept = language.kept(found, ["en", "fr"], 0.5)
    assert kept["keep"].to_list() == [True, False, False, False, False]
    assert kept["reason"].to_list() == [None, "language de", "language unsure", "language unsure", "no language"]


def test_the_codes_that_are_known_can_be_asked_for():
    assert len(language.codes()) == 176
    assert set(SENTENCES) < set(language.codes())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    language._model.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rlhf_data\[lang\]'"):
        language.languages(["a"])
