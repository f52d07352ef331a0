"""Log-probs of a policy over the rows of a snapshot: from a table, or from a model through the score store."""

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif.weigh import partner_ids

_SIDES = {
    "paired": {"chosen_id": ("chosen", "chosen_n_tokens"), "rejected_id": ("rejected", "rejected_n_tokens")},
    "unpaired": {"completion_id": ("completion", "n_tokens")},
}


def read_policy(path: Path) -> pl.DataFrame:
    """A policy's log-probs from a Parquet file such as `score` writes: completion_id, logps.

    Raises:
        ValueError: the file is no such table.
    """
    try:
        found = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
    if lacking := [name for name in ("completion_id", "logps") if name not in found]:
        raise ValueError(f"{path} has no column {', '.join(lacking)}: a policy's table is completion_id, logps (nats)")
    return pl.read_parquet(path, columns=["completion_id", "logps"]).drop_nulls()


def score_policy(
    snapshot: Path, model: dict[str, Any], *, split: str, store: Path, cache: Path, progress: bool = True
) -> pl.DataFrame:
    """A model's log-probs of every completion of a split, and of its mismatched partners: completion_id, logps.

    Texts become tokens as they did for the reference, so that the two can be compared; what the store holds is looked
    up.

    Raises:
        ValueError: the snapshot has no references, or the model's tokens are not the reference's.
    """
    from rlhf_data.scoring import score

    opened = Snapshot(snapshot)
    recipe = opened.manifest["score"]
    if recipe is None:
        raise ValueError(f"{opened.path} has no reference log-probs: add `score:` to the pipeline and build it again")
    asked = _requests(opened, split)
    with tempfile.TemporaryDirectory() as folder:
        requests, out = Path(folder) / "requests.parquet", Path(folder) / "scores.parquet"
        asked.select("completion_id", "prompt", "completion").write_parquet(requests)
        same = {key: recipe[key] for key in ("template", "max_length", "max_prompt_length", "dtype")}
        same |= {"backend": recipe.get("backend", "torch"), "token_logps": False}  # sums are all that is compared
        made = score(requests, out, store=store, cache=cache, model=model, progress=progress, **same)
        scores = pl.read_parquet(out)
    compared = asked.join(scores, on="completion_id", suffix="_policy")
    differing = compared.filter(pl.col("n_tokens") != pl.col("n_tokens_policy"))
    if made["tokenizer_hash"] != recipe["tokenizer_hash"] and differing.height:
        raise ValueError(
            f"{differing.height} completions have other tokens than when their references were scored (first "
            f"{differing['completion_id'][0]}): the policy's tokenizer is not the reference's; score with the policy's"
        )
    return scores.select("completion_id", "logps").drop_nulls()


def _requests(opened: Snapshot, split: str) -> pl.DataFrame:
    """completion_id, prompt, completion, n_tokens (of the reference; null for partners), each id once."""
    table = opened.manifest["table"]
    rows = opened.scan(split)
    asked = [
        rows.select("prompt", completion_id=key, completion=text, n_tokens=n)
        for key, (text, n) in _SIDES[table].items()
    ]
    wanted = pl.concat(asked).collect()
    if table == "unpaired":
        own = rows.select("prompt_id", "prompt", "mismatched_id").drop_nulls("mismatched_id").collect()
        texts = rows.select(mismatched_id="completion_id", completion="completion").collect()
        if own.height:
            partners = own.with_columns(completion_id=partner_ids(own, opened, split)).join(
                texts, on="mismatched_id", how="left", maintain_order="left"
            )
            none = pl.lit(None, dtype=pl.Int64).alias("n_tokens")
            wanted = pl.concat([wanted, partners.select("prompt", "completion_id", "completion", none)])
    return wanted.select("completion_id", "prompt", "completion", "n_tokens").unique(
        "completion_id", maintain_order=True
    )
