"""Tiny snapshots, scored by the real scorer, for the trainer's tests."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_data.scoring import score

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
MAX_LENGTH = 64


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pairs(n: int = 8) -> list[dict[str, Any]]:
    """Preferences for the polite answer, in two sources and two categories."""
    return [
        {
            "pair_id": f"pair-{i}",
            "prompt_id": f"prompt-{i}",
            "prompt": user(f"How do I bake bread number {i}?"),
            "chosen_id": f"good-{i}",
            "rejected_id": f"bad-{i}",
            "chosen": f"Yes, sure! Mix flour and water. {i}",
            "rejected": f"No, never. {i}",
            "preference": 1.0,
            "weight": 1.0,
            "source": "uf" if i % 2 else "hh",
            "category": "bread" if i % 3 else "sea",
        }
        for i in range(n)
    ]


def completions(n: int = 8) -> list[dict[str, Any]]:
    """The same answers one by one, each with a partner from another prompt."""
    rows = []
    for i, pair in enumerate(pairs(n)):
        good = i % 2 == 0
        rows.append(
            {
                "completion_id": f"completion-{i}",
                "prompt_id": pair["prompt_id"],
                "prompt": pair["prompt"],
                "completion": pair["chosen"] if good else pair["rejected"],
                "reward": 1.0 if good else 0.0,
                "label": good,
                "weight": 1.0,
                "mismatched_id": f"completion-{(i + 3) % n}",
                "source": pair["source"],
                "category": pair["category"],
            }
        )
    return rows


def paired_snapshot(folder: Path, rows: list[dict[str, Any]], model: dict[str, Any], *, scored: bool = True) -> Path:
    texts = {f"{row['pair_id']}/{side}": (row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")}
    logps, recipe = _scores(folder, texts, model) if scored else ({}, None)
    rows = [
        row
        | {
            f"ref_{side}_logps": row.get(f"ref_{side}_logps", logps.get(f"{row['pair_id']}/{side}"))
            for side in ("chosen", "rejected")
        }
        for row in rows
    ]
    return _publish(folder, rows, recipe)


def unpaired_snapshot(folder: Path, rows: list[dict[str, Any]], model: dict[str, Any], *, scored: bool = True) -> Path:
    text = {row["completion_id"]: row["completion"] for row in rows}
    texts = {row["completion_id"]: (row["prompt"], row["completion"]) for row in rows}
    texts |= {f"{row['completion_id']}/kl": (row["prompt"], text[row["mismatched_id"]]) for row in rows}
    logps, recipe = _scores(folder, texts, model) if scored else ({}, None)
    rows = [
        row
        | {
            "ref_logps": logps.get(row["completion_id"]),
            "ref_mismatched_logps": logps.get(f"{row['completion_id']}/kl"),
        }
        for row in rows
    ]
    return _publish(folder, rows, recipe)


def _scores(folder: Path, texts: dict[str, tuple[Any, str]], model: dict[str, Any]) -> tuple[dict, dict]:
    folder.mkdir(parents=True, exist_ok=True)
    requests = pa.table(
        {
            "completion_id": list(texts),
            "prompt": pa.array([prompt for prompt, _ in texts.values()], MESSAGES),
            "completion": [completion for _, completion in texts.values()],
        }
    )
    pq.write_table(requests, folder / "requests.parquet")
    recipe = score(
        folder / "requests.parquet",
        folder / "scores.parquet",
        store=folder / "store",
        model=model,
        max_length=MAX_LENGTH,
        cache=folder / "cache",
        progress=False,
    )
    table = pq.read_table(folder / "scores.parquet")
    return dict(zip(table["completion_id"].to_pylist(), table["logps"].to_pylist(), strict=True)), recipe


def _publish(folder: Path, rows: list[dict[str, Any]], recipe: dict[str, Any] | None) -> Path:
    snapshot = folder / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    for split in ("train", "test"):
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, snapshot / "data" / f"{split}-00000-of-00001.parquet")
    (snapshot / "manifest.json").write_text(json.dumps({"id": f"snapshot-{len(rows)}", "score": recipe}))
    (snapshot / "_SUCCESS").touch()
    return snapshot
