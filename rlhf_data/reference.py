"""The step `score`: reference log-probs join the rows; a scorer is handed in, this module knows no model."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables
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
        inputs: "weigh" (rows) and "text" (prompts, completions).
        out: gets rows.parquet, quarantine.parquet and score.json, the recipe.
        table: "paired" or "unpaired".
        scorer: scores completions it is asked for.
        partners: score each row's prompt with a mismatched completion too (unpaired only).
        seed: of the choice of partners.
    """
    text = inputs["text"]
    prompts = tables.read(text / "prompts.parquet", "prompts").select("prompt_id", "prompt")
    texts = tables.read(text / "completions.parquet", "completions").select("completion_id", "completion")
    rows = kept = tables.read(inputs["weigh"] / "rows.parquet", f"{table}_rows")
    refused: list[Refusal] = []
    while True:
        if partners:
            kept = kept.with_columns(mismatched(kept, seed).alias("mismatched_id"))
        recipe, scores = _score(kept, _sides(table, partners), texts, prompts, scorer, out)
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
    tables.write(refusals(refused, "score"), out / "quarantine.parquet", "quarantine")
    (out / "score.json").write_text(json.dumps(recipe, indent=2))
    codes = Counter[str]()
    for refusal in refused:
        codes[refusal.code] += refusal.rows.height
    return [Count("score", "rows", rows.height, kept.height, quarantined=dict(codes))]


def _score(
    rows: pl.DataFrame, sides: list[str], texts: pl.DataFrame, prompts: pl.DataFrame, scorer: Scorer, out: Path
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The recipe, and a score for each prompt and completion that the rows name; `asked_id` is the name."""
    wanted = pl.concat(rows.select("prompt_id", completion_id=side).drop_nulls() for side in sides)
    named = (
        wanted.unique(maintain_order=True)
        .join(texts, on="completion_id", maintain_order="left")
        .join(prompts, on="prompt_id", maintain_order="left")
    )
    # A partner's text under this prompt is a completion of its own: it has its own id.
    asked = pl.col("completion_id")
    requests = named.with_columns(ids.completion_ids(named["prompt_id"], named["completion"]), asked_id=asked)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        asking, answered = Path(folder) / "requests.parquet", Path(folder) / "scores.parquet"
        requests.select("completion_id", "prompt", "completion").write_parquet(asking)
        recipe = scorer(asking, answered)
        scores = pl.read_parquet(answered)
    keys = requests.select("prompt_id", "completion_id", "asked_id")
    return recipe, keys.join(scores, on="completion_id", how="left", maintain_order="left")


def _sides(table: str, partners: bool) -> list[str]:
    if table == "paired":
        return ["chosen_id", "rejected_id"]
    return ["completion_id", "mismatched_id"] if partners else ["completion_id"]


def _side(rows: pl.DataFrame, scores: pl.DataFrame, column: str) -> pl.DataFrame:
    """`rows` with the score of the completion named in `column` as `_logps`, `_n`, `_cut`, `_key`, `_why`."""
    named = scores.select(
        "prompt_id",
        pl.col("asked_id").alias(column),
        _logps="logps",
        _n=pl.col("n_tokens").cast(pl.Int64),
        _cut="truncated",
        _key="key",
        _why="refused",
    )
    return rows.join(named, on=["prompt_id", column], how="left", maintain_order="left")


def _join_pairs(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    bare = rows.drop("ref_chosen_logps", "ref_rejected_logps", "chosen_n_tokens", "rejected_n_tokens", "truncated")
    chosen = _side(bare, scores, "chosen_id").rename(
        {"_logps": "ref_chosen_logps", "_n": "chosen_n_tokens", "_cut": "_cut_1", "_key": "_key_1", "_why": "_why_1"}
    )
    return _side(chosen, scores, "rejected_id").select(
        pl.exclude("_logps", "_n", "_cut", "_key", "_why", "_cut_1", "_key_1", "_why_1"),
        ref_rejected_logps="_logps",
        rejected_n_tokens="_n",
        truncated=pl.col("_cut_1") | pl.col("_cut"),
        _refused=pl.coalesce("_why_1", "_why", pl.when(pl.col("_key_1") == pl.col("_key")).then(pl.lit(EQUAL))),
        _partner_refused=pl.lit(None, dtype=pl.String),
    )


def _join_answers(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    bare = rows.drop("ref_logps", "n_tokens", "truncated", "ref_mismatched_logps")
    own = _side(bare, scores, "completion_id").select(
        pl.exclude("_logps", "_n", "_cut", "_key", "_why"),
        ref_logps="_logps",
        n_tokens="_n",
        truncated="_cut",
        _refused="_why",
    )
    return _side(own, scores, "mismatched_id").select(
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
