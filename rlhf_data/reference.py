"""The step `score`: reference log-probs join the rows; a scorer is handed in, this module knows no model."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.quarantine import Refusal, refusals
from rlhf_data.shape.partners import mismatched

# (requests.parquet, scores.parquet) → the recipe for the manifest. Requests are completion_id, prompt, completion;
# scores are completion_id, key, logps, n_tokens, truncated, refused, and token_logps and mean_log_p2 where the scorer
# was told to give them.
Scorer = Callable[[Path, Path], dict[str, Any]]

EQUAL = "pair.equal_after_truncation"
UNSCORED = "the tokenizer or its template cannot take this text"
OF_ANY_REFERENCE = ("completion_id", "key", "n_tokens", "truncated", "refused")  # of the tokens, not of the model
DETAIL = {EQUAL: "both answers have the same tokens at this max_length"}


def attach(
    inputs: dict[str, Path],
    out: Path,
    *,
    table: str,
    scorer: Scorer,
    others: dict[str, Scorer] | None = None,
    partners: bool = False,
    columns: Sequence[str] = (),
    seed: int = 0,
) -> list[Count]:
    """rows.parquet → rows.parquet with reference log-probs, token counts and `truncated`.

    Args:
        inputs: "weigh" (rows), "text" and "rate", which they are of.
        out: gets rows.parquet, quarantine.parquet and score.json, the recipe.
        table: "paired" or "unpaired".
        scorer: scores completions it is asked for, by the reference.
        others: scorers of further references by name, as `old`, the policy that wrote the completions (unpaired only).
        partners: score each row's prompt with a mismatched completion too (unpaired only).
        columns: optional columns of the table to add; the scorers give what they are made of.
        seed: of the choice of partners.

    Raises:
        ValueError: another reference reads other tokens than the first.
    """
    others = others or {}
    text = inputs["text"]
    rows = kept = tables.read(inputs["weigh"] / "rows.parquet", f"{table}_rows")
    refused: list[Refusal] = []
    while True:
        if partners:
            kept = kept.with_columns(mismatched(_with_ids(kept, text), seed).alias("mismatched_row"))
        asking = requests(kept, table, text, partners=partners)
        recipe, scores = _score(asking, scorer, others, out)
        scored = _join_pairs(kept, scores, columns) if table == "paired" else _join_answers(kept, scores, columns)
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
    (out / "score.json").write_text(json.dumps({**recipe, "columns": sorted(columns)}, indent=2))
    codes = Counter[str]()
    for refusal in refused:
        codes[refusal.code] += refusal.rows.height
    return [Count("score", "rows", rows.height, kept.height, quarantined=dict(codes))]


def _with_ids(rows: pl.DataFrame, text: Path) -> pl.DataFrame:
    known = texts.read(text, "completions", ["completion_row", "completion_id"])
    return rows.with_columns(texts.looked_up(rows["completion_row"], known, "completion_id"))


def requests(rows: pl.DataFrame, table: str, text: Path, *, partners: bool) -> pl.DataFrame:
    """What a scorer is asked: prompt_row, completion_row, completion_id, prompt and completion, each pair of rows once.

    Args:
        rows: with the row numbers of `table`.
        table: "paired" or "unpaired".
        text: the text folder that they are of.
        partners: ask for mismatched completions too.
    """
    asked = pl.concat(rows.select("prompt_row", completion_row=side).drop_nulls() for side in _sides(table, partners))
    named = (
        asked.unique()
        .sort("prompt_row", "completion_row")
        .join(texts.completion_texts(text, asked["completion_row"]), on="completion_row", maintain_order="left")
        .join(texts.prompt_texts(text, asked["prompt_row"]), on="prompt_row", maintain_order="left")
    )
    prompts = texts.read(text, "prompts", ["prompt_row", "prompt_id"])
    prompt_id = texts.looked_up(named["prompt_row"], prompts, "prompt_id")
    # A partner's text under this prompt is a completion of its own: it has its own id.
    return named.with_columns(ids.completion_ids(prompt_id, named["completion"]))


def asked(inputs: dict[str, Path], *, table: str, partners: bool, seed: int) -> pl.DataFrame:
    """What `attach` would ask of its scorers at first, with the same arguments; see `requests`."""
    rows = tables.read(inputs["weigh"] / "rows.parquet", f"{table}_rows")
    if partners:
        rows = rows.with_columns(mismatched(_with_ids(rows, inputs["text"]), seed).alias("mismatched_row"))
    return requests(rows, table, inputs["text"], partners=partners)


def write_requests(asking: pl.DataFrame, path: Path) -> None:
    """Write what `requests` gave as a scorer reads it."""
    asking.select("completion_id", "prompt", "completion").write_parquet(path)


def _score(
    asking: pl.DataFrame, scorer: Scorer, others: dict[str, Scorer], out: Path
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The recipe, and a score for each prompt and completion that is asked for, by their row numbers.

    What another reference measured is named after it: `old_logps` and so on.
    """
    keys = asking.select("prompt_row", "completion_row", "completion_id")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        questions, answers = Path(folder) / "requests.parquet", Path(folder) / "scores.parquet"
        write_requests(asking, questions)
        recipe = scorer(questions, answers)
        scores = keys.join(pl.read_parquet(answers), on="completion_id", how="left", maintain_order="left")
        for name, other in others.items():
            recipe.setdefault("references", {})[name] = other(questions, answers)
            scores = _with_other(scores, pl.read_parquet(answers), name)
    return recipe, scores


def _with_other(scores: pl.DataFrame, answers: pl.DataFrame, name: str) -> pl.DataFrame:
    """`scores` with what another reference measured of the same tokens."""
    columns = [column for column in answers.columns if column not in OF_ANY_REFERENCE]
    theirs = answers.select("completion_id", _key="key", **{f"{name}_{column}": column for column in columns})
    joined = scores.join(theirs, on="completion_id", how="left", maintain_order="left")
    differing = joined.filter(pl.col("key").is_not_null() & pl.col("key").ne_missing(pl.col("_key")))
    if differing.height:
        raise ValueError(
            f"score.references.{name} reads other tokens than score.model in {differing.height} of {joined.height} "
            f"completions (first {differing['completion_id'][0]}): its tokenizer or chat template is another; both "
            "must be of one family"
        )
    return joined.drop("_key")


def _sides(table: str, partners: bool) -> list[str]:
    if table == "paired":
        return ["chosen_row", "rejected_row"]
    return ["completion_row", "mismatched_row"] if partners else ["completion_row"]


def _side(
    rows: pl.DataFrame, scores: pl.DataFrame, column: str, names: dict[str, str], further: dict[str, str]
) -> pl.DataFrame:
    """`rows` with the score of the completion named in `column`.

    Args:
        rows: with prompt_row and `column`.
        scores: of `_score`.
        column: of completion rows.
        names: new columns of `rows`, by what they are called in `scores`.
        further: the same of columns that `scores` may lack, where nothing asked for them.
    """
    named = scores.select(
        "prompt_row",
        pl.col("completion_row").alias(column),
        **{new: pl.col(name) for new, name in names.items()},
        **{new: pl.col(name) for new, name in further.items()},
    )
    return rows.join(named, on=["prompt_row", column], how="left", maintain_order="left")


def _join_pairs(rows: pl.DataFrame, scores: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    for side in ("chosen", "rejected"):
        names = {
            f"ref_{side}_logps": "logps",
            f"{side}_n_tokens": "n_tokens",
            f"_{side}_cut": "truncated",
            f"_{side}_key": "key",
            f"_{side}_why": "refused",
        }
        prefix = f"ref_{side}_"
        further = {column: column.removeprefix(prefix) for column in columns if column.startswith(prefix)}
        bare = rows.drop(*names, *further, strict=False)
        rows = _side(bare, scores, f"{side}_row", names, further)
    equal = pl.when(pl.col("_chosen_key") == pl.col("_rejected_key")).then(pl.lit(EQUAL))
    return _lengths_as_int64(rows).select(
        pl.exclude("^_.*$", "truncated"),
        truncated=pl.col("_chosen_cut") | pl.col("_rejected_cut"),
        _refused=pl.coalesce("_chosen_why", "_rejected_why", equal),
        _partner_refused=pl.lit(None, dtype=pl.String),
    )


def _join_answers(rows: pl.DataFrame, scores: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    names = {"ref_logps": "logps", "n_tokens": "n_tokens", "truncated": "truncated", "_refused": "refused"}
    further = {column: column.removeprefix("ref_") for column in columns}
    own = _side(rows.drop(*names, *further, strict=False), scores, "completion_row", names, further)
    partner = {"ref_mismatched_logps": "logps", "_partner_refused": "refused"}
    return _lengths_as_int64(_side(own.drop("ref_mismatched_logps"), scores, "mismatched_row", partner, {}))


def _lengths_as_int64(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("^(.*_)?n_tokens$").cast(pl.Int64))


def _refuse(scored: pl.DataFrame, column: str) -> tuple[pl.DataFrame, list[Refusal]]:
    """The rows without a code in `column`, the column dropped, and the others by their codes."""
    refused = [
        Refusal(code, scored.filter(pl.col(column) == code), DETAIL.get(code, UNSCORED))
        for code in scored[column].unique().drop_nulls().sort()
    ]
    return scored.filter(pl.col(column).is_null()).drop(column), refused
