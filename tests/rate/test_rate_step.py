"""Battles, reliability, scales and verifiers from raw records to a snapshot."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlhf_data.cli import run_command
from tests.project import Project

RAW = Path(os.environ.get("RLHF_DATA_RAW", Path(__file__).parents[3] / "shared" / "data"))
MODELS = ("strong", "middling", "weak")


def spec(rate: str, *, columns: str = "", source: str = "", shape: str = "{to: paired, pairing: all}") -> str:
    read = source or f"{{path: raw/*.jsonl{', columns: {' + columns + '}' if columns else ''}}}"
    return f"""version: 1
name: demo
sources:
  a: {read}
rate: {rate}
shape: {shape}
publish: {{to: snapshots/demo}}
"""


BATTLES = (
    "prompt: prompt, chosen: won, rejected: lost, model: won_by, other_model: lost_by, preference: p, position: at"
)


def battles(prompts: int = 4) -> list[dict[str, Any]]:
    """Three answers to each prompt; the stronger model wins, but one battle in five."""
    rows = []
    for p in range(prompts):
        for k in range(5):
            for i, j in ((0, 1), (1, 2), (0, 2)):
                won, lost = (i, j) if k else (j, i)
                text = {m: f"{MODELS[m]} answer to {p}" for m in (won, lost)}
                row = {"prompt": f"question {p}?", "won": text[won], "lost": text[lost], "p": 1.0, "at": "first"}
                rows.append(row | {"won_by": MODELS[won], "lost_by": MODELS[lost]})
    return rows


def build(project: Project, rows: list[dict[str, Any]], text: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The published rows and the manifest."""
    project.raw(rows)
    project.spec(text)
    assert project.build() == 0
    return pl.read_parquet(project.snapshot.path / "data" / "*.parquet"), project.snapshot.manifest


def counted(manifest: dict[str, Any], unit: str) -> dict[str, Any]:
    (count,) = (c for c in manifest["accounting"] if c["step"] == "rate" and c["unit"] == unit)
    return count


def test_answers_are_paired_by_their_strengths_and_the_margin_is_in_nats(project):
    rows, manifest = build(project, battles(), spec("{by: bradley_terry}", columns=BATTLES))
    assert rows.height == 12  # three pairs a prompt
    assert (rows["margin"] > 0).all() and (rows["preference"] == 1.0).all()
    strong = rows.filter(pl.col("chosen").str.starts_with("strong"), pl.col("rejected").str.starts_with("weak"))
    assert strong.height == 4
    assert [m["model"] for m in sorted(manifest["rating"]["models"], key=lambda m: -m["strength"])] == list(MODELS)
    assert counted(manifest, "judgments") | {"step": ""} == {
        "step": "", "unit": "judgments", "rows_in": 60, "out": 60, "merged": {}, "quarantined": {}, "filtered": {},
    }  # fmt: skip
    assert counted(manifest, "answers in battles")["merged"] == {"into one row per answer": 120 - 12}
    # each answer met each of the two others five times: the five battles of a pair are of both its answers
    assert rows["raw_ref"].list.len().to_list() == [15] * 12


def test_the_reward_and_its_standard_error_are_published(project):
    text = spec("{by: bradley_terry, of: model, ties: davidson}", columns=BATTLES, shape="{to: unpaired}")
    rows, manifest = build(project, battles(), text)
    strength = {m["model"]: (m["strength"], m["std"]) for m in manifest["rating"]["models"]}
    assert {(r["model"], r["reward"], r["reward_std"]) for r in rows.to_dicts()} == {
        (m, *s) for m, s in strength.items()
    }
    assert manifest["rating"]["effects"]["tie"]["estimate"] < 0
    assert [m["battles"] for m in manifest["rating"]["models"]] == [40, 40, 40]


def test_the_lengths_of_answers_are_measured_in_their_texts(project):
    long, short = "long " * 30, "short"
    rows = [
        {
            "prompt": f"question {p}?",
            "won": f"{long}{p}",
            "lost": f"{short}{p}",
            "p": 1.0,
            "at": ("first", "second")[p % 2],
        }
        | {"won_by": "xy"[p % 2], "lost_by": "yx"[p % 2]}
        for p in range(12)
    ]
    rate = "{by: bradley_terry, of: model, covariates: [length, position]}"
    _, manifest = build(project, rows, spec(rate, columns=BATTLES, shape="{to: unpaired}"))
    # The longer always wins, whoever wrote it, and each model is the longer as often.
    assert manifest["rating"]["effects"]["length"]["estimate"] > 1.0
    assert abs(manifest["rating"]["effects"]["position"]["estimate"]) < 1e-6
    assert [m["strength"] for m in manifest["rating"]["models"]] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_an_unnamed_model_is_refused_and_a_model_against_itself_is_left_out(project):
    rows = battles()
    rows[0] |= {"won": "by nobody", "won_by": None}
    rows[1] |= {"won": "another", "won_by": "weak", "lost": "one more", "lost_by": "weak"}
    text = spec("{by: bradley_terry, of: model}", columns=BATTLES, shape="{to: unpaired}")
    _, manifest = build(project, rows, text)
    count = counted(manifest, "judgments")
    assert count["quarantined"] == {"model.missing": 1}
    assert count["filtered"] == {"two answers by one model": 1}
    assert (count["rows_in"], count["out"]) == (60, 58)


def test_strengths_that_are_not_likeliest_are_an_error_that_names_who_is_apart(project, capsys):
    project.raw([row for k, row in enumerate(battles()) if k % 15 >= 3])  # the stronger always wins
    project.spec(spec("{by: bradley_terry, of: model, prior: none}", columns=BATTLES))
    assert project.build() == 1
    assert "(middling); (strong); (weak): give a prior" in capsys.readouterr().err


def test_elo_takes_the_battles_in_the_order_of_the_files(project):
    rate = "{by: elo, of: model, elo: {k: 32, start: 0}}"
    first = {"prompt": "q?", "won": "a", "lost": "b", "p": 1.0, "at": "first", "won_by": "x", "lost_by": "y"}
    second = {**first, "won": "b", "lost": "a", "won_by": "y", "lost_by": "x"}
    _, manifest = build(project, [first, second], spec(rate, columns=BATTLES, shape="{to: unpaired}"))
    lead = 32.0
    back = 32.0 / (1.0 + 10.0 ** (-lead / 400.0))  # y wins against a lead of 32
    strength = {m["model"]: m["strength"] for m in manifest["rating"]["models"]}
    assert strength == pytest.approx({"x": 16.0 - back, "y": back - 16.0})


VOTES = "prompt: q, chosen: a, rejected: b, annotator: who, preference: p"


def test_reliable_annotators_outvote_spammers(project):
    votes = [
        {"q": f"question {q}?", "a": f"good {q}", "b": f"bad {q}", "who": who, "p": float(vote)}
        for q in range(40)
        for who, vote in (
            ("careful", q % 10 > 0),
            ("exact", 1),
            ("other", q % 7 > 0),
            *((f"spammer {k}", (q >> k) % 2) for k in range(3)),
        )
    ]
    rows, manifest = build(project, votes, spec("{by: votes, votes: dawid_skene}", columns=VOTES))
    assert rows["chosen"].str.starts_with("good").mean() > 0.95
    assert rows["preference"].is_between(0.5, 1.0).all()
    people = {person["annotator"]: person for person in manifest["rating"]["most_active"]}
    assert people["exact"]["right"] > 0.9 > 0.75 > max(people[f"spammer {k}"]["right"] for k in range(3))
    assert manifest["rating"]["agreement"]["votes"]["units"] == 40
    assert manifest["rating"]["annotators"] == 6


def test_harsh_and_mild_annotators_agree_once_normalized(project):
    rows = [
        {"prompt": f"q{p}?", "completion": f"answer {a} to {p}", "rating": a + shift, "annotator": who}
        for p in range(3)
        for a in range(3)
        for who, shift in (("harsh", 1), ("mild", 7))
    ]
    text = spec("{by: rating, normalize: rank, per: annotator}", shape="{to: unpaired}")
    published, manifest = build(project, rows, text)
    # 3 answers share each rank of 9: places 2, 5 and 8, less ½, in ninths
    assert sorted(published["reward"].unique()) == pytest.approx([1.5 / 9, 4.5 / 9, 7.5 / 9])
    assert published["rating"].min() == 4.0  # the mean of 1 and 7: the source's units
    assert (published["reward_std"] == 0.0).all()
    assert manifest["rating"]["agreement"]["rating"]["alpha"] < 0.0


VERIFIER = """
def right(messages, answer):
    if answer == "broken":
        raise RuntimeError("no such answer")
    return float("nan") if answer == "unclear" else answer == "4"
"""


def test_a_verifier_rates_every_answer_and_what_it_cannot_rate_is_refused(project, monkeypatch):
    (project.folder / "sums_checked.py").write_text(VERIFIER)
    monkeypatch.syspath_prepend(project.folder)
    rows = [{"prompt": "2+2?", "completion": a, "rating": 1} for a in ("4", "5", "broken", "unclear")]
    text = spec("{by: verifier, verifier: sums_checked:right}", shape="{to: unpaired}")
    published, manifest = build(project, rows, text)
    assert dict(published.select("completion", "reward").iter_rows()) == {"4": 1.0, "5": 0.0}
    assert published["raw_ref"].list.len().to_list() == [1, 1]
    assert counted(manifest, "completions")["quarantined"] == {"verifier.raised": 1, "verifier.not_finite": 1}
    quarantine = project.snapshot.quarantine() if hasattr(project.snapshot, "quarantine") else None
    refused = (
        quarantine if quarantine is not None else pl.read_parquet(project.snapshot.path / "quarantine" / "*.parquet")
    )
    raised = refused.filter(pl.col("code") == "verifier.raised")
    assert json.loads(raised["row"][0])["said"] == "RuntimeError: no such answer"
    assert [ref.rpartition("/")[2] for ref in raised["raw_ref"][0]] == ["r.jsonl#2"]


def test_a_verifier_that_changed_rates_again(project, monkeypatch, capsys):
    file = project.folder / "sums_changed.py"
    file.write_text(VERIFIER)
    monkeypatch.syspath_prepend(project.folder)
    rows = [{"prompt": "2+2?", "completion": a, "rating": 1} for a in ("4", "5")]
    build(project, rows, spec("{by: verifier, verifier: sums_changed:right}", shape="{to: unpaired}"))
    assert run_command(["plan", "demo.yaml"]) == 0
    file.write_text(VERIFIER + "# another thought\n")
    assert run_command(["plan", "demo.yaml"]) == 2  # changes pending


@pytest.mark.skipif(not RAW.is_dir(), reason=f"no raw data at {RAW}; set RLHF_DATA_RAW")
def test_the_votes_of_llmfao_are_rated(project):
    folder = RAW / "llmfao"
    source = (
        f"{{path: {{votes: {folder}/crowd-comparisons.csv, battles: {folder}/pairs-crowd.jsonl.gz, "
        f"models: {folder}/models.jsonl}}, adapter: llmfao}}"
    )
    project.spec(spec("{by: votes, votes: dawid_skene}", source=source, shape="{to: paired, ties: soft}"))
    assert project.build() == 0
    manifest = project.snapshot.manifest
    rows = pl.read_parquet(project.snapshot.path / "data" / "*.parquet")
    assert rows["votes"].sum() == counted(manifest, "judgments")["rows_in"] == 8931
    found = manifest["rating"]
    assert found["annotators"] == 124
    assert found["agreement"]["votes"]["units"] == (rows["votes"] > 1).sum()
    assert 0.0 < found["agreement"]["votes"]["alpha"] < 0.5
    by_models = "{by: bradley_terry, of: model, ties: davidson, covariates: [length]}"
    project.spec(spec(by_models, source=source, shape="{to: unpaired}"))
    assert project.build() == 0
    models = {model["model"]: model for model in project.snapshot.manifest["rating"]["models"]}
    assert len(models) == 59
    assert models["GPT 4"]["strength"] - models["Dolly v2 (12B)"]["strength"] > 3 * models["GPT 4"]["std"]
