"""Adapters of public sets, on records made up in the form that each one's documentation gives."""

import json
import subprocess
import sys
from typing import Any, NamedTuple

import polars as pl
import pytest

from rlhf_data import sources
from rlhf_data.sources.samples import FORMS, PERIOD, make
from tests.sources.damage import damaged

N = 100
K = N // PERIOD  # records with each oddity


class Golden(NamedTuple):
    """What becomes of N records.

    Attributes:
        judgments: how many observations are kept.
        refused: observations or records refused, by code.
        skipped: those left out, by code.
        ties: comparisons whose value is one half.
        options: of the adapter.
    """

    judgments: int
    refused: dict[str, int]
    skipped: dict[str, int] = {}  # noqa: RUF012  (never changed)
    ties: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012


_ARENA = {"prompt.mismatch": K, "dialogue.malformed": K, "verdict.unknown": K, "verdict.missing": K}
_PKU = {"pair.identical": K}
GOLDEN = {
    "alpaca": Golden(N - 2 * K, {"completion.missing": K, "prompt.empty": K}),
    "arena": Golden(N - 5 * K, _ARENA, {"turns.several": K}, ties=2 * K),
    "arena both_bad": Golden(
        N - 6 * K, _ARENA, {"turns.several": K, "verdict.both_bad": K}, ties=K, options={"both_bad": "skip"}
    ),
    "arena_human_preference": Golden(
        N - 6 * K,
        {"verdict.unknown": 2 * K, "turns.malformed": 2 * K, "completion.missing": K},
        {"turns.several": K},
        ties=K,
    ),
    "beavertails": Golden(N - 3 * K, {"label.missing": K, "completion.missing": K, "column.type": K}),
    "dolly": Golden(N - K, {"completion.missing": K}),
    "guanaco": Golden(N - 3 * K, {"dialogue.malformed": 2 * K}, {"reply.missing": K}),
    "helpsteer": Golden(5 * (N - K) - 2 * K, {"rating.out_of_range": K, "rating.missing": K, "column.type": K}),
    "helpsteer2_preference": Golden(
        N - 3 * K, {"verdict.unknown": K, "verdict.missing": K, "completion.missing": K}, ties=K
    ),
    "helpsteer3": Golden(N - 2 * K, {"verdict.unknown": K, "prompt.last_turn": K}, ties=K),
    "helpsteer3 individual": Golden(
        3 * (N - 2 * K),
        {"prompt.last_turn": 3 * K},
        {"preference.absent": K},
        ties=K,
        options={"judgment": "individual"},
    ),
    "kto": Golden(N - 4 * K, {"label.missing": K, "column.type": K, "completion.missing": K, "prompt.missing": K}),
    "nectar": Golden(7 * (N - 2 * K) - K, {"rank.missing": K, "dialogue.malformed": K, "answers.empty": K}),
    "orca_dpo": Golden(N - 2 * K, {"completion.missing": K, "pair.identical": K}),
    "pku_safe better": Golden(N - 2 * K, {**_PKU, "verdict.unknown": K}, options={"judgment": "better"}),
    "pku_safe safer": Golden(N - 2 * K, {**_PKU, "verdict.missing": K}, options={"judgment": "safer"}),
    "pku_safe safe": Golden(2 * N - K, {"label.missing": K}, options={"judgment": "safe"}),
    "sharegpt": Golden(N - 4 * K, {"role.unknown": K}, {"reply.missing": 3 * K}),
    "sharegpt every": Golden(
        N - 4 * K + K, {"role.unknown": K}, {"reply.missing": 3 * K}, options={"replies": "every"}
    ),
    "shp": Golden(
        N - 4 * K, {"verdict.unknown": K, "verdict.missing": K, "completion.missing": K, "pair.identical": K}
    ),
    "stack_exchange": Golden(4 * (N - K) - 2 * K, {"rating.missing": K, "answers.empty": K, "completion.missing": K}),
    "summarize_feedback": Golden(
        N - 4 * K,
        {"verdict.unknown": K, "verdict.missing": K, "summaries.malformed": K, "post.missing": K},
    ),
    "ultrafeedback": Golden(16 * N - 3 * K, {"rating.not_a_number": K, "rating.missing": K}, {"aspect.absent": K}),
    "ultrafeedback_binarized": Golden(
        N - 3 * K, {"score.contradicts": K, "verdict.missing": K, "prompt.mismatch": K}, ties=K
    ),
    "ultrafeedback_binarized rating": Golden(
        2 * (N - K) - K, {"prompt.mismatch": K, "rating.missing": K}, options={"judgment": "rating"}
    ),
    "webgpt": Golden(N - 3 * K, {"score.malformed": K, "verdict.missing": K, "prompt.missing": K}, ties=K),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_an_adapter_keeps_what_is_sound_and_names_what_is_not(name, tmp_path, run):
    wanted = GOLDEN[name]
    adapter = name.split()[0]
    found = run(make(adapter, tmp_path / "raw" / "f.jsonl", N), adapter=adapter, options=wanted.options)
    assert found.judgments.height == wanted.judgments
    assert dict(found.quarantine["code"].value_counts().rows()) == wanted.refused
    compared = found.judgments.filter(pl.col("kind") == "comparison")
    assert (compared["value"] == 0.5).sum() == wanted.ties
    assert found.records.filtered | found.observations.filtered == wanted.skipped
    assert found.records.rows_in == N


def test_every_form_has_an_adapter_and_a_golden_test():
    assert set(FORMS) <= set(sources.ADAPTERS)
    assert {name.split()[0] for name in GOLDEN} == set(FORMS)
    assert all(len(form.odd) <= PERIOD // 2 for form in FORMS.values())


def test_a_form_gives_the_same_bytes_for_the_same_seed(tmp_path):
    files = [make("shp", tmp_path / f"{i}.jsonl", 30, seed=seed).read_bytes() for i, seed in enumerate((3, 3, 4))]
    assert files[0] == files[1] != files[2]


def test_an_adapter_reads_parquet_as_it_reads_json(tmp_path, run):
    for name in ("ultrafeedback_binarized", "webgpt", "nectar", "summarize_feedback"):
        path = make(name, tmp_path / f"{name}.jsonl", N)
        frame = pl.read_ndjson(path, infer_schema_length=None)
        frame.write_parquet(tmp_path / f"{name}.parquet")
        one, other = (
            run({"raw": [str(tmp_path / f"{name}.{suffix}")]}, adapter=name) for suffix in ("jsonl", "parquet")
        )
        ids = ["prompt_id", "completion_id", "other_id", "value"]
        assert one.judgments.select(ids).equals(other.judgments.select(ids))


def test_an_adapter_reads_csv_as_it_reads_json(tmp_path, run):
    for name in ("arena_human_preference", "shp", "alpaca"):
        path = make(name, tmp_path / f"{name}.jsonl", N)
        pl.read_ndjson(path, infer_schema_length=None).write_csv(tmp_path / f"{name}.csv", quote_style="non_numeric")
        one, other = (run({"raw": [str(tmp_path / f"{name}.{suffix}")]}, adapter=name) for suffix in ("jsonl", "csv"))
        assert one.judgments.select("completion_id", "value").equals(other.judgments.select("completion_id", "value"))


@pytest.mark.parametrize("name", FORMS)
def test_no_damage_to_a_part_of_a_record_loses_the_record_or_stops_the_read(name, tmp_path, run):
    lines = make(name, tmp_path / "f.jsonl", 100).read_text().splitlines()
    sound = [json.loads(line) for line in lines][::2]  # without oddities
    broken = list(damaged(sound[0]))
    # Many sound records, so that a column's type is what it is.
    records = [*sound, *broken, *(sound * (1 + len(broken) // len(sound)))]
    options = {"judgment": "better"} if name == "pku_safe" else {}
    found = run(records, adapter=name, options=options)
    assert found.records.rows_in == len(records)
    assert found.records.out >= len(records) - len(broken)


def test_the_command_writes_a_sample_and_knows_its_names(tmp_path):
    command = [sys.executable, "-m", "rlhf_data.sources.samples"]
    path = tmp_path / "f.jsonl"
    subprocess.run([*command, "shp", path, "7"], check=True, capture_output=True)
    assert len(path.read_text().splitlines()) == 7
    failed = subprocess.run([*command, "shq", path], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "no form named 'shq', did you mean 'shp'?" in failed.stderr


def read(name, *records, **options):
    """The rows of an adapter for records as JSON has them."""
    from rlhf_data.sources import cells, readers

    module = sources.adapter(name)
    (wanted,) = module.TABLES.values()
    return module.read(cells.table(readers.Raw("f", list(records), {}), wanted).frame, **options)


def contents(prompt):
    return [(message["role"], message["content"]) for message in prompt]


def test_helpsteer_takes_the_turns_of_a_prompt_apart():
    record = {"response": "r", **dict.fromkeys(sources.adapter("helpsteer").ASPECTS, 1)}
    several = "a\n\nb\n<extra_id_1>Assistant\nc\n<extra_id_1>User\nd"
    rows = read("helpsteer", {**record, "prompt": several}, {**record, "prompt": "one"}).rows
    assert contents(rows["prompt"][0]) == [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]
    assert contents(rows["prompt"][5]) == [("user", "one")]


@pytest.mark.parametrize(("strength", "value"), [(-3, 1.0), (-1, 1.0), (0, 0.5), (1, 0.0), (3, 0.0)])
def test_helpsteer_counts_from_minus_three_for_the_first_response(strength, value):
    pair = {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": strength}
    assert read("helpsteer2_preference", pair).rows["value"].to_list() == [value]


def test_shp_says_one_for_the_first_comment():
    pair = {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "domain": "askphysics_validation"}
    rows = read("shp", {**pair, "labels": 1}, {**pair, "labels": 0}).rows
    assert rows.select("completion", "value", "category").rows() == [("a", 1.0, "askphysics"), ("a", 0.0, "askphysics")]


def test_pku_safe_counts_from_zero_and_tells_better_from_safer():
    record = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    record |= {"is_response_0_safe": False, "is_response_1_safe": True}
    values = {j: read("pku_safe", record, judgment=j).rows["value"].to_list() for j in ("better", "safer", "safe")}
    assert values == {"better": [1.0], "safer": [0.0], "safe": [0.0, 1.0]}


def test_summaries_are_asked_for_under_the_headings_of_their_post():
    info = {"post": "P", "title": "T", "subreddit": "s", "article": None}
    sides = [{"text": "a", "policy": "m"}, {"text": "b", "policy": "n"}]
    rows = read("summarize_feedback", {"info": info, "summaries": sides, "choice": 1, "worker": "w"}).rows
    assert rows["prompt"].to_list() == ["SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"]
    assert rows.select("completion", "other", "value", "model").rows() == [("a", "b", 0.0, "m")]


def test_webgpt_takes_the_sign_of_a_score():
    question = {"dataset": "eli5", "full_text": "q"}
    scores = (1.0, 0.25, 0.0, -0.5)
    records = [
        {"question": question, "answer_0": "a", "answer_1": "b", "score_0": score, "score_1": -score}
        for score in scores
    ]
    assert read("webgpt", *records).rows["value"].to_list() == [1.0, 1.0, 0.5, 0.0]


def test_a_conversation_gives_its_replies_each_under_what_stands_before():
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"), ("human", "e")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    rows = read("sharegpt", record, replies="every").rows
    assert rows["completion"].to_list() == ["b", "d"]
    assert contents(rows["prompt"][0]) == [("system", "s"), ("user", "a")]
    assert contents(rows["prompt"][1]) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert read("sharegpt", record).rows["completion"].to_list() == ["d"]


def test_guanaco_takes_a_text_apart_at_its_tags():
    rows = read("guanaco", {"text": "### Human: a### Assistant: b\n### Human: c ### d### Assistant: e\nf"}).rows
    assert contents(rows["prompt"][0]) == [("user", "a"), ("assistant", "b"), ("user", "c ### d")]
    assert rows["completion"].to_list() == ["e\nf"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("arena", {"both_bad": "lose"}),
        ("helpsteer3", {"judgment": "mean"}),
        ("pku_safe", {"judgment": "best"}),
        ("sharegpt", {"replies": "first"}),
        ("ultrafeedback_binarized", {"judgment": "score"}),
    ],
)
def test_an_option_with_names_takes_no_other(name, options):
    with pytest.raises(ValueError, match=r"it must be .* or "):
        sources.adapter(name).read(pl.DataFrame(), **options)
