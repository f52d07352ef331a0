"""Reference log-probs join the right rows, and what cannot be scored is refused by code."""

from pathlib import Path

import polars as pl
import pytest

from rlhf_data import reference, tables, texts
from rlhf_data.ids import MESSAGES
from rlhf_data.rate.rate import rate
from tests.rows import answers_of, text_folder

ANSWERS = {"p1": ["yes", "no", "maybe"], "p2": ["left", "right"], "p3": ["up", "down"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Prompts and rated completions of ANSWERS, and nothing else."""
    rated = [
        {"prompt": prompt, "completion": answer, "rating": 1} for prompt, found in ANSWERS.items() for answer in found
    ]
    folder = text_folder(tmp_path_factory.mktemp("text"), {"s": rated})
    (folder / "rate").mkdir()
    rate({"text": folder}, folder / "rate")
    return folder


def names(text: Path) -> dict[str, tuple[int, int]]:
    """Completion → (prompt_row, completion_row)."""
    return {row["completion"]: (row["prompt_row"], row["completion_row"]) for row in answers_of(text).to_dicts()}


class Scorer:
    """Scores a completion by the length of its text and of its prompt; refuses what it is told to."""

    def __init__(self, refuse: str = "", alike: tuple[str, ...] = ()) -> None:
        self.refuse, self.alike, self.asked = refuse, alike, []

    def __call__(self, requests: Path, scores: Path) -> dict:
        frame = pl.read_parquet(requests)
        self.asked.append(frame)
        answers = frame["completion"]
        assert frame.schema["prompt"] == MESSAGES
        prompts = [turns[0]["content"] for turns in frame["prompt"].to_list()]
        refused = ["text.special_token" if t == self.refuse else None for t in answers]
        pl.DataFrame(
            {
                "completion_id": frame["completion_id"],
                "key": ["same" if t in self.alike else i for t, i in zip(answers, frame["completion_id"], strict=True)],
                "logps": [
                    None if code else -float(len(t)) - int(p[1:]) / 10
                    for t, p, code in zip(answers, prompts, refused, strict=True)
                ],
                "n_tokens": pl.Series([None if code else 1 for code in refused], dtype=pl.Int32),
                "truncated": pl.Series([None if code else False for code in refused], dtype=pl.Boolean),
                "refused": pl.Series(refused, dtype=pl.String),
            }
        ).write_parquet(scores)
        return {"model": "lengths"}


def weighed(folder: Path, rows: list[dict], table: str) -> Path:
    folder.mkdir()
    common = {"source": "s", "split": "train", "weight": 1.0}
    frame = pl.DataFrame([common | row for row in rows]) if rows else tables.empty(f"{table}_rows")
    tables.write(frame, folder / "rows.parquet", f"{table}_rows")
    return folder


def attach(tmp_path: Path, text: Path, rows: list[dict], table: str, scorer: Scorer, **options) -> tuple:
    inputs = {"weigh": weighed(tmp_path / "weigh", rows, table), "text": text, "rate": text / "rate"}
    out = tmp_path / "out"
    out.mkdir()
    (count,) = reference.attach(inputs, out, table=table, scorer=scorer, **options)
    refused = tables.read(out / "quarantine.parquet", "quarantine")
    assert sorted(path.name for path in out.iterdir()) == ["quarantine.parquet", "rows.parquet", "score.json"]
    return tables.read(out / "rows.parquet", f"{table}_rows"), refused, count


def pair(text: Path, chosen: str, rejected: str) -> dict:
    (prompt_row, chosen_row), (_, rejected_row) = names(text)[chosen], names(text)[rejected]
    sides = {"chosen_row": chosen_row, "rejected_row": rejected_row}
    return {"prompt_row": prompt_row, "preference": 1.0, "margin": 0.0, **sides}


def single(text: Path, completion: str) -> dict:
    prompt_row, completion_row = names(text)[completion]
    judgments = tables.read(text / "rate" / "rated.parquet", "rated").filter(completion_row=completion_row)
    behind = judgments["judgment_rows"][0].to_list()
    return {"prompt_row": prompt_row, "completion_row": completion_row, "label": True, "judgment_rows": behind}


def test_each_side_of_a_pair_gets_its_own_log_prob_and_shared_answers_are_asked_for_once(tmp_path, text):
    scorer = Scorer()
    rows, refused, count = attach(
        tmp_path, text, [pair(text, "yes", "no"), pair(text, "yes", "maybe")], "paired", scorer
    )
    assert rows["ref_chosen_logps"].to_list() == [-3.1, -3.1]
    assert sorted(rows["ref_rejected_logps"]) == [-5.1, -2.1]
    assert sorted(scorer.asked[0]["completion"]) == ["maybe", "no", "yes"]
    assert refused.height == 0 and (count.rows_in, count.out) == (2, 2)


def test_a_pair_that_is_equal_after_truncation_is_refused(tmp_path, text):
    scorer = Scorer(alike=("yes", "no"))
    rows, refused, count = attach(tmp_path, text, [pair(text, "yes", "no"), pair(text, "up", "down")], "paired", scorer)
    assert rows.height == 1 and refused["code"].to_list() == ["pair.equal_after_truncation"]
    assert count.quarantined == {"pair.equal_after_truncation": 1}


def test_a_row_with_a_text_that_the_tokenizer_refuses_is_refused_by_its_code(tmp_path, text):
    scorer = Scorer(refuse="no")
    rows, refused, _ = attach(tmp_path, text, [pair(text, "yes", "no"), pair(text, "up", "down")], "paired", scorer)
    assert rows["ref_chosen_logps"].to_list() == [-2.3]
    assert refused["code"].to_list() == ["text.special_token"] and refused["raw_ref"].to_list() == [
        ["s0.jsonl#0", "s0.jsonl#1"]
    ]


def test_a_partner_is_scored_under_this_rows_prompt(tmp_path, text):
    rows, _, _ = attach(
        tmp_path, text, [single(text, "yes"), single(text, "left")], "unpaired", Scorer(), partners=True
    )
    of = {row["completion_row"]: row for row in rows.iter_rows(named=True)}
    yes, left = of[names(text)["yes"][1]], of[names(text)["left"][1]]
    assert (yes["ref_logps"], left["ref_logps"]) == (-3.1, -4.2)
    assert (yes["mismatched_row"], left["mismatched_row"]) == (left["completion_row"], yes["completion_row"])
    assert (yes["ref_mismatched_logps"], left["ref_mismatched_logps"]) == (-4.1, -3.2)


@pytest.mark.parametrize("refuse", ["yes", "left", "up"])
def test_no_row_keeps_a_partner_that_was_refused(tmp_path, text, refuse):
    rows, refused, count = attach(
        tmp_path,
        text,
        [single(text, answer) for answer in ("yes", "left", "up", "down")],
        "unpaired",
        Scorer(refuse=refuse),
        partners=True,
    )
    assert set(rows["mismatched_row"]) <= set(rows["completion_row"])
    assert rows["ref_mismatched_logps"].null_count() == 0
    assert names(text)[refuse][1] not in rows["completion_row"]
    assert count.rows_in == count.out + refused.height == 4


def test_without_partners_none_are_asked_for(tmp_path, text):
    scorer = Scorer()
    rows, _, _ = attach(tmp_path, text, [single(text, "yes"), single(text, "left")], "unpaired", scorer)
    assert rows["mismatched_row"].null_count() == 2 and scorer.asked[0].height == 2


def test_a_partners_text_is_asked_for_by_the_id_that_it_has_under_this_prompt(tmp_path, text):
    scorer = Scorer()
    attach(tmp_path, text, [single(text, "yes"), single(text, "left")], "unpaired", scorer, partners=True)
    (asked,) = scorer.asked
    own = dict(texts.read(text, "completions").select("completion_id", "completion_row").iter_rows())
    assert asked.height == asked["completion_id"].n_unique() == 4
    assert sum(known in own for known in asked["completion_id"]) == 2


@pytest.mark.parametrize(("table", "partners"), [("paired", False), ("unpaired", False), ("unpaired", True)])
def test_no_rows_have_no_scores(table, partners, tmp_path, text):
    rows, refused, count = attach(tmp_path, text, [], table, Scorer(), partners=partners)
    assert (rows.height, refused.height, count.rows_in) == (0, 0, 0)
