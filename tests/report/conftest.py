"""Published tables and manifests made up for the pages: real in shape, seeded, without any step of the pipeline."""

import math
import random
from typing import Any

import polars as pl
import pytest

from rlhf_data import tables

CATEGORIES = ["helpfulness", "code", "math", "harmlessness", None]
SOURCES = {"ultrafeedback": 0.6, "hh": 0.3, "arena": 0.1}
TEXT = """the model answer a question how explain water light because when people often need to find simple way of
writing code that runs fast first check input then return value energy system history city river number"""
WORDS = TEXT.split()


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(max(1, words))).capitalize() + "."


def _common(rng: random.Random, n: int, splits: tuple[str, ...]) -> dict[str, list[Any]]:
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(max(1, n // 2))]
    of = [rng.choice(ids) for _ in range(n)]
    turns = {i: 1 if rng.random() < 0.8 else 3 for i in ids}
    prompts = {
        i: [{"role": ("user", "assistant")[t % 2], "content": sentence(rng, 14)} for t in range(turns[i])] for i in ids
    }
    where = {i: rng.choices(splits, [0.94, 0.02, 0.04][: len(splits)])[0] for i in ids}
    category = {i: rng.choices(CATEGORIES, [5, 3, 2, 2, 1])[0] for i in ids}
    return {
        "prompt_id": of,
        "prompt": [prompts[i] for i in of],
        "source": rng.choices(list(SOURCES), list(SOURCES.values()), k=n),
        "category": [category[i] for i in of],
        "split": [where[i] for i in of],
        "weight": [round(min(3.0, rng.gammavariate(2, 0.5)), 3) for _ in range(n)],
        "raw_ref": [[f"train-{k % 3:05}.jsonl#{k}"] for k in range(n)],
    }


def _logps(rng: random.Random, tokens: list[int]) -> list[float]:
    return [-t * rng.lognormvariate(0.1, 0.35) for t in tokens]


@pytest.fixture
def paired():
    return make_paired


def make_paired(n: int, *, splits: tuple[str, ...] = ("train", "validation", "test"), scored: bool = True, **over: Any):
    """Made-up preference pairs; `over` replaces columns (a value, or a list of values)."""
    rng = random.Random(7)
    common = _common(rng, n, splits)
    margin = [round(abs(rng.gauss(1.4, 1.2)), 2) for _ in range(n)]
    low = [round(rng.uniform(1, 7), 2) for _ in range(n)]
    lengths = [(max(1, int(rng.lognormvariate(4.6, 0.7))), max(1, int(rng.lognormvariate(4.4, 0.8)))) for _ in range(n)]
    soft = [rng.random() for _ in range(n)]
    columns = {
        **common,
        "pair_id": [f"{rng.getrandbits(128):032x}" for _ in range(n)],
        "chosen_id": [f"{rng.getrandbits(128):032x}" for _ in range(n)],
        "rejected_id": [f"{rng.getrandbits(128):032x}" for _ in range(n)],
        "chosen": [sentence(rng, c) for c, _ in lengths],
        "rejected": [sentence(rng, r) for _, r in lengths],
        "margin": margin,
        "chosen_reward": [a + m for a, m in zip(low, margin, strict=True)],
        "rejected_reward": low,
        "preference": [
            1.0 if s < 0.7 else 0.5 if s > 0.95 else 1 / (1 + math.exp(-m)) for s, m in zip(soft, margin, strict=True)
        ],
        "votes": [rng.choice([1, 1, 1, 2, 3, 5]) for _ in range(n)],
    }
    if scored:
        chosen, rejected = [c for c, _ in lengths], [r for _, r in lengths]
        columns |= {"chosen_n_tokens": chosen, "rejected_n_tokens": rejected}
        columns |= {"ref_chosen_logps": _logps(rng, chosen), "ref_rejected_logps": _logps(rng, rejected)}
        columns["truncated"] = [rng.random() < 0.01 for _ in range(n)]
    return _frame(columns, over, n, "paired")


@pytest.fixture
def unpaired():
    return make_unpaired


def make_unpaired(
    n: int, *, splits: tuple[str, ...] = ("train", "validation", "test"), scored: bool = False, **over: Any
):
    """Made-up completions; `over` replaces columns."""
    rng = random.Random(11)
    common = _common(rng, n, splits)
    rating = [rng.choice([1.0, 2.0, 3.0, 4.0, 4.0, 5.0]) for _ in range(n)]
    tokens = [max(1, int(rng.lognormvariate(4.2 + 0.1 * r, 0.7))) for r in rating]
    columns = {
        **common,
        "completion_id": [f"{rng.getrandbits(128):032x}" for _ in range(n)],
        "completion": [sentence(rng, t) for t in tokens],
        "rating": rating,
        "reward": [(r - 3) / 2 + rng.gauss(0, 0.05) for r in rating],
        "label": [None if r == 3 else r > 3 for r in rating],
        "model": [rng.choice(["qwen3-0.6b", "llama-3.1-8b", None]) for _ in range(n)],
    }
    if scored:
        columns |= {"n_tokens": tokens, "ref_logps": _logps(rng, tokens), "truncated": [False] * n}
    return _frame(columns, over, n, "unpaired")


def _frame(columns: dict[str, list[Any]], over: dict[str, Any], n: int, table: str) -> pl.DataFrame:
    types = tables.columns(table)
    columns |= {name: value if isinstance(value, list) else [value] * n for name, value in over.items()}
    return tables.conform(pl.DataFrame(columns, schema={c: types[c] for c in columns}), table)


@pytest.fixture
def refused():
    return make_refused


def make_refused(n: int, **over: Any) -> pl.DataFrame:
    rng = random.Random(3)
    codes = ["pair.identical", "rating.out_of_scale", "prompt.mismatch", "completion.missing"]
    return pl.DataFrame(
        {
            "source": [rng.choice(list(SOURCES)) for _ in range(n)],
            "raw_ref": [[f"train-00000.jsonl#{rng.randrange(99999)}"] for _ in range(n)],
            "step": ["collect"] * n,
            "code": [rng.choices(codes, [8, 3, 2, 1])[0] for _ in range(n)],
            "detail": [rng.choice([None, "rating 11 is not within 1 to 10"]) for _ in range(n)],
            "row": [f'{{"prompt": "{sentence(rng, 12)}", "rating": 11}}' for _ in range(n)],
            **over,
        },
        schema=tables.columns("quarantine"),
    )


@pytest.fixture
def manifest():
    return make_manifest


def make_manifest(rows: pl.DataFrame, **over: Any) -> dict[str, Any]:
    """A manifest as publish writes it, for these rows."""
    table = "paired" if "pair_id" in rows.columns else "unpaired"
    sizes = dict(sorted(rows["split"].value_counts().iter_rows()))
    n = rows.height
    digest = "3f6c1d2a9b8e7f605142a3b4c5d6e7f8"
    made = {
        "format": 1,
        "name": "ultrafeedback-dpo",
        "id": "20261122T162813Z-5f0c9a31d7e2",
        "about": "Rated answers, four per prompt, to DPO pairs; two more sources for harmlessness and arena battles.",
        "table": table,
        "created": "2026-11-22T16:28:13Z",
        "content_hash": "5f0c9a31d7e2b4a8c6d0e1f2a3b4c5d6",
        "spec_hash": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        "rows": {s: sizes.get(s, 0) for s in ("train", "validation", "test")},
        "accounting": steps(n),
        "sources": {
            "ultrafeedback": {
                "files": [{"name": "uf/train-00000.jsonl", "bytes": 941_220_113, "digest": digest}],
                "license": "MIT",
                "adapter": "ultrafeedback",
                "records": 3 * n,
            },
            "hh": {
                "files": [{"name": "hh/hh.jsonl.gz", "bytes": 91_220_113, "digest": digest}],
                "license": "mit",
                "records": n,
            },
            "arena": {"files": [], "adapter": "arena", "license": "CC-BY-4.0", "records": n // 2},
        },
        "versions": {"rlhf_data": "0.1.0", "polars": "2.1.0", "python": "3.11.9"},
        "files": [
            {"path": f"data/{s}-00000-of-00001.parquet", "rows": k, "bytes": 812_112, "digest": digest}
            for s, k in sizes.items()
        ],
    }
    return made | over


def steps(n: int) -> list[dict[str, Any]]:
    """The accounting of a build that ends in n rows."""

    def step(name: str, unit: str, out: int, **left: dict[str, int]) -> dict[str, Any]:
        gone = sum(sum(reasons.values()) for reasons in left.values())
        nothing: dict[str, dict[str, int]] = {"merged": {}, "quarantined": {}, "filtered": {}}
        return {"step": name, "unit": unit, "rows_in": out + gone, "out": out, **(nothing | left)}

    return [
        step(
            "read:ultrafeedback",
            "records",
            2 * n,
            quarantined={"json.invalid": n // 90},
            filtered={"reply.unranked": n // 30},
        ),
        step("read:hh", "records", n, quarantined={"prompt.mismatch": n // 50}),
        step("read:arena", "records", n // 3),
        step(
            "collect",
            "observations",
            3 * n,
            merged={"same completion": n // 3},
            quarantined={"pair.identical": n // 40},
        ),
        step(
            "clean",
            "completions",
            5 * n // 2,
            filtered={"length": n // 4, "duplicate": n // 5, "decontaminated": n // 95},
        ),
        step("rate", "judgments", 5 * n // 2, merged={"votes": n // 8}, quarantined={"rating.out_of_scale": n // 70}),
        step("shape", "pairs", n, filtered={"tie": n // 10, "margin below 0.5": n // 6}),
        step("weigh", "pairs", n),
    ]
