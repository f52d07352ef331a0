"""What the score store holds of what is asked, and what is missing, before any model is loaded. Needs no torch."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from rlhf_data.scoring import recipe
from rlhf_data.scoring.requests import request_ids
from rlhf_data.scoring.store import Index, ScoreStore

# What dtype auto may come to mean: whether there is a GPU is not known without torch.
_AUTO = ("float32", "bfloat16")


def status(
    requests: Path,
    *,
    store: Path,
    model: dict[str, Any],
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    dtype: str = "auto",
    token_logps: bool = True,
    squares: bool = False,
    give: Sequence[str] = (),
    backend: str = "torch",
    cache: Path,
    **_: Any,
) -> list[dict[str, Any]]:
    """What `scorer.score` would find and what it would run, with the same arguments.

    Returns:
        One for each dtype that `dtype` may mean (auto: float32 on a CPU, bfloat16 on a GPU): model, dtype, and counts
        of distinct completions. `completions` = `stored` + `missing` + `refused` (by `encode`); of the missing, `new`
        were never tokenised, so that some of them may turn out to be stored under another id, or refused. `tokens` are
        completion tokens: of what is stored, and of what is missing and not new.
    """
    asked = request_ids(requests).unique()
    index = Index(store, recipe.encoding(model, template, max_length, max_prompt_length, cache))
    rows = index.find(asked)
    refused = rows["refused"].is_valid().combine_chunks()
    new = pc.and_not(pc.is_null(rows["key"]).combine_chunks(), refused)
    found = []
    for one in _AUTO if dtype == "auto" else (dtype,):
        scores = ScoreStore(store, recipe.numeric(model, one, cache, backend=backend))
        tokens, p2 = token_logps or "token_logps" in give, squares or "mean_log_p2" in give
        stored = scores.has(rows["key"], tokens=tokens, squares=p2)
        missing = pc.and_not(pc.invert(stored), refused)
        counted = {"stored": stored, "missing": missing, "refused": refused, "new": new}
        found.append(
            {
                "model": model,
                "dtype": one,
                "completions": len(asked),
                **{name: pc.sum(where).as_py() or 0 for name, where in counted.items()},
                "tokens": {
                    name: pc.sum(rows["n_tokens"].filter(counted[name])).as_py() or 0 for name in ("stored", "missing")
                },
            }
        )
    return found
