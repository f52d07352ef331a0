"""Reference log-probs join the right rows, and what cannot be scored is refused by code."""

from pathlib import Path

import polars as pl
import pytest

from rlhf_data import ids, reference, tables
from rlhf_data.ids import MESSAGES

ANSWERS = {"p1": ["yes", "no", "maybe"], "p2": ["left", "right"], "p3": ["up", "down"]}


@pytest.fixture
def text(tmp_path) -> Path:
    """Prompts and completions of ANSWERS, and nothing else."""
    folder = tmp_path / "text"
    folder.mkdir()
    prompts = pl.Series("prompt", [[{"role": "user", "content": name}] for name in ANSWERS], dtype=MESSAGES)
    frame = prompts.to_frame().with_columns(ids.prompt_ids(prompts), ids.split_keys(prompts))
    tables.write(frame, folder / "prompts.parquet", "prompts")
    rows = pl.DataFrame(
        {
            "prompt_id": [frame["prompt_id"][k] for k, answers in enumerate(ANSWERS.values()) for _ in answers],
            "completion": [answer for answers in ANSWERS.values() for answer in answers],
        }
    )
    completions = rows.with_columns(ids.completion_ids(rows["prompt_id"], rows["completion"]), source=pl.lit("s"))
    tables.write(completions, folder / "completions.parquet", "completions")
    return folder


def names(text: Path) -> dict[str, tuple[str, str]]:
    """Completion → (prompt_id, completion_id)."""
    frame = pl.read_parquet(text / "completions.parquet")
    return {row["completion"]: (row["prompt_id"], row["completion_id"]) for row in frame.iter_rows(named=True)}


class Scorer:
    """Scores a completion by the length of its text and of its prompt; refuses what it is told to."""

    def __init__(self, refuse: str = "", alike: tuple[str, ...] = ()) -> None:
        self.refuse, self.alike, self.asked = refuse, alike, []

    def __call__(self, requests: Path, scores: Path) -> dict:
        frame = pl.read_parquet(requests)
        self.asked.append(frame)
        texts = frame["completion"]
        prompts = [turns[0]["content"] for turns in frame["prompt"].to_list()]
        refused = ["text.special_token" if t == self.refuse else None for t in texts]
        pl.DataFrame(
            {
                "completion_id": frame["completion_id"],
                "key": ["same" if t in self.alike else i for t, i in zip(texts, frame["completion_id"], strict=True)],
                "logps": [
                    None if code else -float(len(t)) - int(p[1:]) / 10
                    for t, p, code in zip(texts, prompts, refused, strict=True)
                ],
                "n_tokens": pl.Series([None if code else 1 for code in refused], dtype=pl.Int32),
                "truncated": pl.Series([None if code else False for code in refused], dtype=pl.Boolean),
                "refused": pl.Series(refused, dtype=pl.String),
            }
        ).write_parquet(scores)
        return {"model": "lengths"}


def weighed(folder: Path, rows: list[dict], table: str) -> Path:
    folder.mkdir()
    common = {"source": "s", "split": "train", "weight": 1.0, "raw_ref": ["f#0"]}
    tables.write(pl.DataFrame([common | row for row in rows]), folder / "rows.parquet", f"{table}_rows")
    return folder


def attach(tmp_path: Path, text: Path, rows: list[dict], table: str, scorer: Scorer, **options) -> tuple:
    inputs = {"weigh": weighed(tmp_path / "weigh", rows, table), "text": text}
    out = tmp_path / "out"
    out.mkdir()
    (count,) = reference.attach(inputs, out, table=table, scorer=scorer, **options)
    refused = tables.read(out / "quarantine.parquet", "quarantine")
    assert sorted(path.name for path in out.iterdir()) == ["quarantine.parquet", "rows.parquet", "score.json"]
    return tables.read(out / "rows.parquet", f"{table}_rows"), refused, count


def pair(text: Path, chosen: str, rejected: str) -> dict:
    (prompt_id, chosen_id), (_, rejected_id) = names(text)[chosen], names(text)[rejected]
    pair_id = ids.pair_ids(pl.Series([chosen_id]), pl.Series([rejected_id]), "pair_id")[0]
    sides = {"chosen_id": chosen_id, "rejected_id": rejected_id}
    return {"prompt_id": prompt_id, "pair_id": pair_id, "preference": 1.0, **sides}


def single(text: Path, completion: str) -> dict:
    prompt_id, completion_id = names(text)[completion]
    return {"prompt_id": prompt_id, "completion_id": completion_id, "label": True}


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
    assert refused["code"].to_list() == ["text.special_token"] and refused["raw_ref"].to_list() == [["f#0"]]


def test_a_partner_is_scored_under_this_rows_prompt(tmp_path, text):
    rows, _, _ = attach(
        tmp_path, text, [single(text, "yes"), single(text, "left")], "unpaired", Scorer(), partners=True
    )
    of = {row["completion_id"]: row for row in rows.iter_rows(named=True)}
    yes, left = of[names(text)["yes"][1]], of[names(text)["left"][1]]
    assert (yes["ref_logps"], left["ref_logps"]) == (-3.1, -4.2)
    assert (yes["mismatched_id"], left["mismatched_id"]) == (left["completion_id"], yes["completion_id"])
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
    assert set(rows["mismatched_id"]) <= set(rows["completion_id"])
    assert rows["ref_mismatched_logps"].null_count() == 0
    assert names(text)[refuse][1] not in rows["completion_id"]
    assert count.rows_in == count.out + refused.height == 4


def test_without_partners_none_are_asked_for(tmp_path, text):
    scorer = Scorer()
    rows, _, _ = attach(tmp_path, text, [single(text, "yes"), single(text, "left")], "unpaired", scorer)
    assert rows["mismatched_id"].null_count() == 2 and scorer.asked[0].height == 2
