"""The step `score`: reference log-probs join the rows; a scorer is handed in, this module knows no model."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals
from rlhf_data.shape.partners import mismatched

# (requests.parquet, scores.parquet) → the recipe for the manifest. Requests are completion_id, prompt, completion;
# scores are completion_id, key, logps, n_tokens, truncated, refused.
Scorer = Callable[[Path, Path], dict[str, Any]]

EQUAL = "pair.equal_after_truncation"
UNSCORED = "the tokenizer or its template cannot take this text"
DETAIL = {EQUAL: "both answers have the same tokens at this max_length"}


def attach(
    inputs: dict[str, Path], out: Path, *, table: str, scorer: Scorer, partners: bool = False, seed: int = 0
) -> list[Count]:
    """rows.parquet → rows.parquet with reference log-probs, token counts and `truncated`.

    Args:
        inputs: "weigh" (rows), "text" and "rate", which they are of.
        out: gets rows.parquet, quarantine.parquet and score.json, the recipe.
        table: "paired" or "unpaired".
        scorer: scores completions it is asked for.
        partners: score each row's prompt with a mismatched completion too (unpaired only).
        seed: of the choice of partners.
    """
    text = inputs["text"]
    rows = kept = tables.read(inputs["weigh"] / "rows.parquet", f"{table}_rows")
    refused: list[Refusal] = []
    while True:
        if partners:
            kept = kept.with_columns(mismatched(_with_ids(kept, text), seed).alias("mismatched_row"))
        recipe, scores = _score(kept, _sides(table, partners), text, scorer, out)
        scored = _join_pairs(kept, scores) if table == "paired" else _join_answers(kept, scores)
        kept, refused_now = _refuse(scored, "_refused")
        refused += refused_now
        if not (partners and refused_now):
            kept, refused_now = _refuse(kept, "_partner_refused")
            refused += refused_now
            break
        # A refused row may be another one's partner: choose again among those that are left.
        kept = kept.drop("_partner_refused")
    tables.write(kept, out / "rows.parquet", f"{table}_rows")
    tables.write(
        refusals(refused, "score", text, inputs["rate"] if table == "paired" else None),
        out / "quarantine.parquet",
        "quarantine",
    )
    (out / "score.json").write_text(json.dumps(recipe, indent=2))
    codes = Counter[str]()
    for refusal in refused:
        codes[refusal.code] += refusal.rows.height
    return [Count("score", "rows", rows.height, kept.height, quarantined=dict(codes))]


def _with_ids(rows: pl.DataFrame, text: Path) -> pl.DataFrame:
    known = texts.read(text, "completions", ["completion_row", "completion_id"])
    return rows.with_columns(texts.looked_up(rows["completion_row"], known, "completion_id"))


def _score(
    rows: pl.DataFrame, sides: list[str], text: Path, scorer: Scorer, out: Path
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The recipe, and a score for each prompt and completion that the rows name, by their row numbers."""
    asked = pl.concat(rows.select("prompt_row", completion_row=side).drop_nulls() for side in sides)
    named = (
        asked.unique()
        .sort("prompt_row", "completion_row")
        .join(texts.completion_texts(text, asked["completion_row"]), on="completion_row", maintain_order="left")
        .join(texts.prompt_texts(text, asked["prompt_row"]), on="prompt_row", maintain_order="left")
    )
    prompts = texts.read(text, "prompts", ["prompt_row", "prompt_id"])
    prompt_id = texts.looked_up(named["prompt_row"], prompts, "prompt_id")
    # A partner's text under this prompt is a completion of its own: it has its own id.
    requests = named.with_columns(ids.completion_ids(prompt_id, named["completion"]))
    with tempfile.TemporaryDirectory(dir=out) as folder:
        asking, answered = Path(folder) / "requests.parquet", Path(folder) / "scores.parquet"
        requests.select("completion_id", "prompt", "completion").write_parquet(asking)
        recipe = scorer(asking, answered)
        scores = pl.read_parquet(answered)
    keys = requests.select("prompt_row", "completion_row", "completion_id")
    return recipe, keys.join(scores, on="completion_id", how="left", maintain_order="left")


def _sides(table: str, partners: bool) -> list[str]:
    if table == "paired":
        return ["chosen_row", "rejected_row"]
    return ["completion_row", "mismatched_row"] if partners else ["completion_row"]


def _side(rows: pl.DataFrame, scores: pl.DataFrame, column: str) -> pl.DataFrame:
    """`rows` with the score of the completion named in `column` as `_logps`, `_n`, `_cut`, `_key`, `_why`."""
    named = scores.select(
        "prompt_row",
        pl.col("completion_row").alias(column),
        _logps="logps",
        _n=pl.col("n_tokens").cast(pl.Int64),
        _cut="truncated",
        _key="key",
        _why="refused",
    )
    return rows.join(named, on=["prompt_row", column], how="left", maintain_order="left")


def _join_pairs(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    bare = rows.drop("ref_chosen_logps", "ref_rejected_logps", "chosen_n_tokens", "rejected_n_tokens", "truncated")
    chosen = _side(bare, scores, "chosen_row").rename(
        {"_logps": "ref_chosen_logps", "_n": "chosen_n_tokens", "_cut": "_cut_1", "_key": "_key_1", "_why": "_why_1"}
    )
    return _side(chosen, scores, "rejected_row").select(
        pl.exclude("_logps", "_n", "_cut", "_key", "_why", "_cut_1", "_key_1", "_why_1"),
        ref_rejected_logps="_logps",
        rejected_n_tokens="_n",
        truncated=pl.col("_cut_1") | pl.col("_cut"),
        _refused=pl.coalesce("_why_1", "_why", pl.when(pl.col("_key_1") == pl.col("_key")).then(pl.lit(EQUAL))),
        _partner_refused=pl.lit(None, dtype=pl.String),
    )


def _join_answers(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    bare = rows.drop("ref_logps", "n_tokens", "truncated", "ref_mismatched_logps")
    own = _side(bare, scores, "completion_row").select(
        pl.exclude("_logps", "_n", "_cut", "_key", "_why"),
        ref_logps="_logps",
        n_tokens="_n",
        truncated="_cut",
        _refused="_why",
    )
    return _side(own, scores, "mismatched_row").select(
        pl.exclude("_logps", "_n", "_cut", "_key", "_why"),
        ref_mismatched_logps="_logps",
        _partner_refused="_why",
    )


def _refuse(scored: pl.DataFrame, column: str) -> tuple[pl.DataFrame, list[Refusal]]:
    """The rows without a code in `column`, the column dropped, and the others by their codes."""
    refused = [
        Refusal(code, scored.filter(pl.col(column) == code), DETAIL.get(code, UNSCORED))
        for code in scored[column].unique().drop_nulls().sort()
    ]
    return scored.filter(pl.col(column).is_null()).drop(column), refused
