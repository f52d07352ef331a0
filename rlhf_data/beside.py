"""What one or two models write to held-out prompts, to be read by people side by side."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import files
from rlhf_data.sampled import draw, prompts_of
from rlhf_data.snapshot import Snapshot

COLUMNS = ("prompt_id", "prompt", "category", "model", "sample", "completion", "n_tokens", "finished", "reward")
Verifier = Callable[[list[dict[str, str]], str], Any]


def answers(
    opened: Snapshot,
    models: dict[str, dict[str, Any]],
    *,
    split: str = "test",
    prompts: int | None = 5,
    verifier: Verifier | None = None,
    seed: int = 0,
    store: Path,
    **sampling: Any,
) -> pl.DataFrame:
    """A row for each prompt, model and sample, in this order, with COLUMNS.

    Args:
        opened: whose prompts are answered.
        models: reference of each model, by the name it is shown under.
        split: of the snapshot.
        prompts: so many of them, drawn by keyed hash; None for all.
        verifier: (messages, answer) → reward; without one, `reward` is null.
        seed: of the choice of prompts and of sampling.
        store: the store of samples: what it holds is not written again, and what was killed goes on.
        sampling: see `training.generate.samples`.

    Raises:
        ValueError: no such split, or a model that cannot write.
    """
    from rlhf_data.training.generate import samples

    there = opened.files(split)
    if not there:
        raise ValueError(f"{opened.path} has no split {split!r}; it has {', '.join(opened.manifest['rows'])}")
    known = prompts_of([str(path) for path in there], opened.manifest["table"])
    asked = draw(known, rows=prompts, skip=0, seed=seed)
    rows = asked.to_dicts()
    written = [
        pl.read_parquet(samples(store, rows, model=model, seed=seed, **sampling)).with_columns(
            model=pl.lit(name), _place=pl.lit(place)
        )
        for place, (name, model) in enumerate(models.items())
    ]
    order = asked.select("prompt_id").with_row_index("_prompt")
    found = pl.concat(written).join(order, on="prompt_id").sort("_prompt", "_place", "sample")
    texts = found.select("prompt", "completion").iter_rows()
    rewards = [float(verifier(prompt, text)) if verifier else None for prompt, text in texts]
    return found.with_columns(reward=pl.Series(rewards, dtype=pl.Float64)).select(COLUMNS)


def check_file(out: Path) -> None:
    """ValueError where `write` does not know this kind of file: asked before anything is generated."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out {out}: answers are written as .jsonl or .parquet; name such a file")


def write(found: pl.DataFrame, out: Path) -> None:
    """Write answers as .jsonl or .parquet, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(out) as beside:
        found.write_ndjson(beside) if out.suffix == ".jsonl" else found.write_parquet(beside)


def in_words(found: pl.DataFrame, width: int = 100) -> list[str]:
    """The same as lines of text: each prompt, and under it the models' answers in columns.

    Args:
        found: of `answers`.
        width: characters of a line.
    """
    names = found["model"].unique(maintain_order=True).to_list()
    column = max(20, (width - 2 - 3 * (len(names) - 1)) // len(names))
    lines: list[str] = []
    for (_, sample), part in found.group_by("prompt_id", "sample", maintain_order=True):
        first = part.row(0, named=True)
        if sample == 0:
            category = f"  [{first['category']}]" if first["category"] else ""
            lines += ["", *(f"{turn['role']}: {turn['content']}" for turn in first["prompt"][-4:])]
            lines[-1] += category
        cells = [_cell(row, column) for row in part.iter_rows(named=True)]
        rows = zip_longest(*cells, fillvalue="")
        lines += [f"  {'   '.join(text.ljust(column) for text in row)}".rstrip() for row in rows]
    return [*lines, "", *summary(found)]


def summary(found: pl.DataFrame) -> list[str]:
    """A line for each model, and how often the first one's answers beat the other's."""
    figures = found.group_by("model", maintain_order=True).agg(
        pl.len(), pl.col("reward").mean(), pl.col("n_tokens").mean(), pl.col("finished").mean()
    )
    lines = [
        f"{name}: {n:,} answers"
        + (f", mean reward {reward:.3f}" if reward is not None else "")
        + f", {tokens:.1f} tokens on average, {finished:.0%} ended by themselves"
        for name, n, reward, tokens, finished in figures.iter_rows()
    ]
    if figures.height == 2 and not found["reward"].null_count():
        first, second = figures["model"].to_list()
        share = win_rate(found, first, second)
        lines.append(f"{first} beats {second} in {share:.1%} of meetings; a tie counts one half")
    return lines


def win_rate(found: pl.DataFrame, first: str, second: str) -> float:
    """The mean over prompts of how often an answer of `first` is better than one of `second`, a tie one half."""
    sides = [found.filter(pl.col("model") == name).select("prompt_id", "reward") for name in (first, second)]
    met = sides[0].join(sides[1], on="prompt_id", suffix="_second")
    gap = pl.col("reward") - pl.col("reward_second")
    won = met.group_by("prompt_id").agg(((gap > 0) + 0.5 * (gap == 0)).mean().alias("won"))
    return float(won["won"].mean())  # type: ignore[arg-type]


def name_of(reference: dict[str, Any], taken: Sequence[str] = ()) -> str:
    """A short name for a model by its reference, another than those that are taken."""
    path = Path(reference["path"])
    short = reference.get("gguf_file") or (path.parent.name if path.name == "model" else path.name) or str(path)
    return short if short not in taken else str(path)


def _cell(row: dict[str, Any], width: int) -> list[str]:
    """An answer as lines of at most `width` characters, the model's name above it."""
    told = [] if row["reward"] is None else [f"reward {row['reward']:.3g}"]
    told += [] if row["finished"] else ["cut off"]
    head = row["model"] + (f" ({', '.join(told)})" if told else "")
    text = [line for part in row["completion"].split("\n") for line in textwrap.wrap(part, width) or [""]]
    return [head[:width], *text]
