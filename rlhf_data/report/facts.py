"""What a published table says of itself: a function per section of its page, None where there is nothing to say."""

from typing import Any

import polars as pl

from rlhf_data.report.display import label
from rlhf_data.report.numbers import groups, has, histograms, parts, quantiles

SPLITS = ("train", "validation", "test")
EXAMPLES = 5
CODES_SHOWN = 20
Facts = dict[str, Any] | None


def narrow(rows: pl.LazyFrame, table: str) -> pl.LazyFrame:
    """The table without its texts: their lengths are enough for every figure."""
    texts = ("chosen", "rejected") if table == "paired" else ("completion",)
    lengths = [pl.col(text).str.len_chars().alias(f"{text}_characters") for text in texts]
    turns = pl.col("prompt").list.len().alias("turns")
    return rows.select(
        pl.exclude(
            "prompt",
            "raw_ref",
            "pair_id",
            "chosen_id",
            "rejected_id",
            "completion_id",
            "^.*_token_logps$",
            "^kept_.*$",
            *texts,
        ),
        turns,
        *lengths,
    )


def headline(rows: pl.DataFrame) -> dict[str, Any]:
    return {
        "prompts": rows["prompt_id"].n_unique(),
        "multi_turn": (rows["turns"] > 1).mean(),
        "weight": float(rows["weight"].sum()),
    }


def by_split(rows: pl.DataFrame) -> Facts:
    if rows.is_empty():
        return None
    lines = {line["name"]: line for line in groups(rows, "split", {"prompts": pl.col("prompt_id").n_unique()})}
    leaks = 0
    if sum(line["prompts"] for line in lines.values()) > rows["prompt_id"].n_unique():
        seen = rows.select("prompt_id", "split").unique()
        leaks = seen.filter(pl.col("prompt_id").is_duplicated())["prompt_id"].n_unique()
    return {"lines": [lines[s] for s in SPLITS if s in lines], "leaks": leaks}


def by_source(rows: pl.DataFrame, sources: dict[str, Any]) -> Facts:
    """The sources of the rows, and those in the manifest that gave none."""
    lines = groups(rows, "source", _group_figures(rows)) if rows.height else []
    declared = {label(name): source for name, source in sources.items()}
    found = {line["name"] for line in lines}
    lines += [{"name": name, "rows": 0, "share": 0.0} for name in declared if name not in found] if lines else []
    for line in lines:
        source = declared.get(line["name"], {})
        files = source.get("files") or []
        line |= {
            "license": source.get("license"),
            "adapter": source.get("adapter"),
            "records": source.get("records"),
            "files": len(files) or None,
            "bytes": sum(file.get("bytes") or 0 for file in files) if files else None,
        }
    return {"lines": lines, "columns": list(_group_figures(rows))} if lines else None


def by_category(rows: pl.DataFrame) -> Facts:
    if not has(rows, "category"):
        return None
    return {"lines": groups(rows, "category", _group_figures(rows)), "columns": list(_group_figures(rows))}


def rewards(rows: pl.DataFrame, table: str) -> Facts:
    """Histograms of rewards, and of ratings where they are not the same numbers."""
    if table == "paired":
        names = {"chosen reward": "chosen_reward", "rejected reward": "rejected_reward"}
        wanted = {title: rows[c] for title, c in names.items() if has(rows, c)}
        charts = histograms(wanted, ("chosen", "rejected"))
        return {"charts": charts} if charts else None
    charts = histograms({"reward": rows["reward"]}, ("one",)) if has(rows, "reward") else []
    if has(rows, "rating") and not rows["rating"].equals(rows["reward"]):
        charts += histograms({"rating, in the source's units": rows["rating"]}, ("two",))
    if has(rows, "reward_std"):
        charts += histograms({"standard deviation of the reward": rows["reward_std"]}, ("two",))
    return {"charts": charts} if charts else None


def margins(rows: pl.DataFrame, table: str) -> Facts:
    if table != "paired" or not has(rows, "margin"):
        return None
    return {"charts": histograms({"margin": rows["margin"]}, ("one",)), "zero": int((rows["margin"] == 0).sum())}


def preference(rows: pl.DataFrame, table: str) -> Facts:
    """How many pairs are certain, soft and tied."""
    if table != "paired" or rows.is_empty():
        return None
    p = rows["preference"]
    certain, tie = int((p == 1).sum()), int((p == 0.5).sum())
    soft = rows.height - certain - tie
    inside = p.filter((p > 0.5) & (p < 1))
    return {
        "parts": parts(certain=certain, soft=soft, tie=tie),
        "charts": histograms({"preference of the soft pairs": inside}, ("soft",)) if soft else [],
        "votes": histograms({"votes behind a pair": rows["votes"]}, ("two",)) if _varies(rows, "votes") else [],
    }


def labels(rows: pl.DataFrame, table: str) -> Facts:
    """Desirable and undesirable completions, overall and by source."""
    if table != "unpaired" or not has(rows, "label"):
        return None
    counts = {"desirable": pl.col("label").sum(), "undesirable": (~pl.col("label")).sum()}
    lines = groups(rows, "source", counts)
    for line in lines:
        line["parts"] = _labelled(line["rows"], line["desirable"], line["undesirable"])
    true, false = int(rows["label"].sum()), int((~rows["label"]).sum())
    return {"parts": _labelled(rows.height, true, false), "lines": lines if len(lines) > 1 else []}


def lengths(rows: pl.DataFrame, table: str) -> Facts:
    """How long completions are, in tokens where all are counted, and whether longer ones are preferred."""
    if rows.is_empty():
        return None
    texts = ("chosen", "rejected") if table == "paired" else ("completion",)
    tokens = {"chosen": "chosen_n_tokens", "rejected": "rejected_n_tokens", "completion": "n_tokens"}
    counted = all(tokens[t] in rows.columns and rows[tokens[t]].null_count() == 0 for t in texts)
    columns = {text: tokens[text] if counted else f"{text}_characters" for text in texts}
    found: dict[str, Any] = {
        "unit": "tokens" if counted else "characters",
        "charts": histograms({t: rows[c] for t, c in columns.items()}, texts if table == "paired" else ("one",)),
        "lines": [{"name": text, **quantiles(rows[column])} for text, column in columns.items()],
        "empty": int(sum((rows[f"{text}_characters"] == 0).sum() for text in texts)),
    }
    bias = _pair_bias(rows, *columns.values()) if table == "paired" else _reward_bias(rows, columns["completion"])
    return found | bias


def weights(rows: pl.DataFrame) -> Facts:
    """Weights of the rows to train on (of all rows where there are none)."""
    train = rows.filter(pl.col("split") == "train")
    used = train if train.height else rows
    w = used["weight"]
    total, squares = float(w.sum()), float((w * w).sum())
    if not total:
        return None
    figures = {"sum": pl.col("weight").sum(), "mean": pl.col("weight").mean(), "max": pl.col("weight").max()}
    tables = {
        by: [line | {"of_weight": line["sum"] / total} for line in groups(used, by, figures)]
        for by in ("source", "category")
        if has(used, by)
    }
    return {
        "of": "the training rows" if train.height else "all rows",
        "rows": used.height,
        "sum": total,
        "effective": total * total / squares,
        "zero": int((w == 0).sum()),
        "same": float(w.min()) if w.min() == w.max() else None,  # type: ignore[arg-type]
        "charts": histograms({"weight": w}, ("one",)) if w.min() != w.max() else [],
        "tables": tables,
    }


def reference(rows: pl.DataFrame, table: str) -> Facts:
    """The reference's log-probs per token, and how often it ranks a pair as the data do."""
    if table == "paired":
        names = {
            "chosen": ("ref_chosen_logps", "chosen_n_tokens"),
            "rejected": ("ref_rejected_logps", "rejected_n_tokens"),
        }
    else:
        names = {"completion": ("ref_logps", "n_tokens")}
    if not all(has(rows, *columns) for columns in names.values()):
        return None
    each = {text: rows[logps] / rows[n] for text, (logps, n) in names.items()}
    found: dict[str, Any] = {
        "charts": histograms(each, ("chosen", "rejected") if table == "paired" else ("one",)),
        "scored": int(rows[next(iter(names.values()))[0]].count()),
        "rows": rows.height,
        "truncated": int(rows["truncated"].sum()) if has(rows, "truncated") else 0,
        "tokens": int(sum(rows[n].sum() for _, n in names.values())),
    }
    if table == "paired":
        untied = rows["preference"] > 0.5
        found["agrees"] = (rows["ref_chosen_logps"] > rows["ref_rejected_logps"]).filter(untied).mean()
        found["agrees_per_token"] = (each["chosen"] > each["rejected"]).filter(untied).mean()
    return found


def refused(quarantine: pl.DataFrame) -> Facts:
    """Quarantined rows by code, with a few of each."""
    if quarantine.is_empty():
        return None
    ref = pl.col("raw_ref").list.first().fill_null("").str.head(300)
    short = quarantine.select("source", "step", "code", pl.col("detail", "row").str.head(400), ref=ref)
    codes = short.group_by("code").agg(n=pl.len()).sort("n", "code", descending=[True, False])
    first = short.sort("code", "source", "ref", "row", "detail", nulls_last=True).group_by("code", maintain_order=True)
    examples = first.head(3).to_dicts()
    lines = [
        {"code": code, "n": n, "share": n / quarantine.height, "examples": [e for e in examples if e["code"] == code]}
        for code, n in codes.head(CODES_SHOWN).iter_rows()
    ]
    left = codes.slice(CODES_SHOWN)
    return {"lines": lines, "n": quarantine.height, "codes_left": left.height, "rows_left": int(left["n"].sum())}


def examples(rows: pl.LazyFrame, table: str) -> Facts:
    """A few rows, the same each time: the first by id of each source in turn, so that no source hides another."""
    key = "pair_id" if table == "paired" else "completion_id"
    first = rows.select("source", key).group_by("source").agg(pl.col(key).bottom_k(EXAMPLES)).explode(key).collect()
    turn = first.sort("source", key).with_columns(pl.int_range(pl.len()).over("source").alias("turn"))
    taken = turn.sort("turn", key).head(EXAMPLES).select(key)
    if taken.is_empty():
        return None
    lines = taken.join(
        rows.filter(pl.col(key).is_in(taken[key].implode())).collect(), on=key, maintain_order="left"
    ).to_dicts()
    for line in lines:
        prompt = line["prompt"] or []
        line["turns_left"] = max(0, len(prompt) - 6)
        line["turns"] = [*prompt[:1], *prompt[-5:]] if len(prompt) > 6 else prompt
    return {"lines": lines, "n": len(lines)}


def shown_first(rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """Those rows of a part of a table that may be among the `examples` of the whole, copied out of the part."""
    key = "pair_id" if table == "paired" else "completion_id"
    first = rows.group_by("source").agg(pl.col(key).bottom_k(EXAMPLES)).explode(key, empty_as_null=False)
    taken = rows.filter(pl.col(key).is_in(first[key].implode()))
    return pl.DataFrame(taken.to_dicts(), schema=rows.schema)  # a filtered frame would keep all texts in memory


def _group_figures(rows: pl.DataFrame) -> dict[str, pl.Expr]:
    figures = {"prompts": pl.col("prompt_id").n_unique()}
    for name in ("reward", "margin"):
        if has(rows, name):
            figures[f"mean {name}"] = pl.col(name).mean()
    if "preference" in rows.columns and (rows["preference"] < 1).any():
        figures["mean preference"] = pl.col("preference").mean()
    if "label" in rows.columns and has(rows, "label"):
        figures["desirable"] = pl.col("label").mean()
    return figures


def _varies(rows: pl.DataFrame, column: str) -> bool:
    return has(rows, column) and rows[column].min() != rows[column].max()


def _labelled(n: int, true: int, false: int) -> list[dict[str, Any]]:
    return parts(desirable=true, undesirable=false, unlabelled=n - true - false)


def _pair_bias(rows: pl.DataFrame, chosen: str, rejected: str) -> dict[str, Any]:
    untied = rows.filter(pl.col("preference") > 0.5)
    if untied.is_empty():
        return {}
    longer, shorter = pl.col(chosen) > pl.col(rejected), pl.col(chosen) < pl.col(rejected)
    counts = untied.select(longer=longer.sum(), shorter=shorter.sum()).row(0)
    sources = groups(untied, "source", {"longer": longer.mean(), "shorter": shorter.mean()})
    return {
        "bias": parts(longer=counts[0], shorter=counts[1], equal=untied.height - sum(counts)),
        "longer": counts[0] / untied.height,
        "bias_lines": sources if len(sources) > 1 else [],
    }


def _reward_bias(rows: pl.DataFrame, length: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _varies(rows, "reward") and _varies(rows, length):
        found["correlation"] = rows.drop_nulls("reward").select(pl.corr("reward", length)).item()
    if has(rows, "label"):
        means = {
            bool(v): m for v, m in rows.drop_nulls("label").group_by("label").agg(pl.col(length).mean()).iter_rows()
        }
        found["by_label"] = [means.get(True), means.get(False)]
    return found
