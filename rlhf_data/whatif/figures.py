"""What a page says of rules over a snapshot: where their gradient comes from, how even it is, how they agree."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rlhf_data import rules
from rlhf_data.snapshot import Snapshot
from rlhf_data.whatif.curves import curve
from rlhf_data.whatif.mass import Sizes, mass, sizes
from rlhf_data.whatif.summary import summary
from rlhf_data.whatif.weigh import KEYS, SIDES, Weighed, columns_of

GROUPS, TOP, TEXT = 24, 5, 400
ALSO = ("source", "category", "label", *("n_tokens", "chosen_n_tokens", "rejected_n_tokens"),
        *("ref_logps", "ref_chosen_logps", "ref_rejected_logps"))  # fmt: skip


def figures(snapshot: Path, made: Weighed, *, split: str, known: Sizes | None = None) -> dict[str, Any]:
    """Every figure of the page, as plain numbers and texts.

    Args:
        snapshot: whose rows were weighed.
        made: of `weigh`, with the columns of ALSO read.
        split: which rows they are.
        known: sizes of gradients as measured by `probe`; None takes the formula of `mass` as it is.

    Returns:
        snapshot, rows, `predictor`, `rules` (a mapping each: label, columns, effective rows, flips, groups, top rows,
        curve) and `agreement` of every two rules.
    """
    kept = made.weights["weight"] > 0
    rows, weights = made.rows.filter(kept), made.weights.filter(kept)
    opened = Snapshot(snapshot)
    measured = sizes(rows, made.table, known or Sizes())
    grouped = _groupings(rows, made.table)
    told, found = [], {}
    summaries = summary(made)
    for one in made.asked:
        names = columns_of(one, made.table, alone=len(made.asked) == 1)
        values = [weights[name].to_numpy() for name in names]
        masses = mass(rows, values, made.table, known or Sizes(), measured)
        found[one.label] = (values, masses)
        told.append({
            "label": one.label,
            "rule": one.rule,
            "about": (rules.RULES[one.rule].__doc__ or "").strip().splitlines()[0],
            "parameters": rules.parameters(one.rule) | one.parameters,
            "columns": summaries[one.label],
            "effective_rows": _effective(masses),
            "half_of_mass": _fewest_for_half(masses),
            "flips": _flips(values, rows, made.table),
            "groups": {name: _shares(names, rows["weight"].to_numpy(), masses) for name, names in grouped.items()},
            "top": _top(masses, values, rows, made.table),
            "curve": curve(one),
        })  # fmt: skip
    if made.table == "paired":
        for one in told:
            one["groups"]["side"] = _side_shares(found[one["label"]][0], rows, measured)
    _add_texts(told, opened, made.table, split)
    return {
        "snapshot": {"id": opened.manifest.get("id"), "name": opened.manifest.get("name"), "path": str(opened.path)},
        "table": made.table,
        "split": split,
        "rows": rows.height,
        "row_weight": float(rows["weight"].sum()),
        "moved": any(name.startswith("policy_") for name in rows.columns),
        "predictor": _predictor(known, measured is not None),
        "rules": told,
        "agreement": _agreement(found, rows, made.table),
        "notes": made.notes,
        "left_out": made.left_out,
    }


def length_buckets(tokens: pl.Series) -> pl.Series:
    """Names of the powers of two between which counts of tokens lie: "64–127"; they sort as texts of one width.

    >>> length_buckets(pl.Series([1, 64, 127])).to_list()
    ['1–1', '64–127', '64–127']
    """
    low = 2 ** np.floor(np.log2(tokens.to_numpy())).astype(np.int64)
    return pl.DataFrame({"low": low}).select(pl.format("{}–{}", pl.col("low"), 2 * pl.col("low") - 1)).to_series()


def _groupings(rows: pl.DataFrame, table: str) -> dict[str, list[str | None]]:
    """For each way of grouping the group of each row."""
    found = {name: rows[name].to_list() for name in ("source", "category") if name in rows.columns}
    names = [f"{s}_n_tokens" for s in SIDES[table]] if table == "paired" else ["n_tokens"]
    if all(name in rows.columns and not rows[name].null_count() for name in names):
        found["length"] = length_buckets(rows.select(pl.max_horizontal(names)).to_series()).to_list()
    if table == "unpaired" and "label" in rows.columns and rows["label"].null_count() < rows.height:
        words = {True: "desirable", False: "undesirable", None: None}
        found["label"] = [words[label] for label in rows["label"].to_list()]
    return found


def _shares(names: list[str | None], weight: np.ndarray, masses: np.ndarray) -> list[dict[str, Any]]:
    """For each group its share of the row weight and of the gradient mass, the largest first, lengths by length."""
    frame = pl.DataFrame({"name": names, "weight": weight, "mass": masses}, schema_overrides={"name": pl.String})
    found = frame.group_by("name").agg(pl.len().alias("rows"), pl.col("weight", "mass").sum())
    whole = max(float(masses.sum()), 1e-300)
    lines = [
        {"name": n, "rows": k, "row_share": w / weight.sum(), "mass_share": m / whole}
        for n, k, w, m in found.sort("weight", "name", descending=[True, False], nulls_last=True).iter_rows()
    ]
    if all(line["name"] and "–" in line["name"] and line["name"].split("–")[0].isdigit() for line in lines):
        lines.sort(key=lambda line: int(line["name"].split("–")[0]))
    rest = lines[GROUPS:]
    if len(rest) > 1:
        sums = {key: sum(line[key] for line in rest) for key in ("rows", "row_share", "mass_share")}
        lines = [*lines[:GROUPS], {"name": f"{len(rest)} more", **sums}]
    return lines


def _side_shares(
    values: list[np.ndarray], rows: pl.DataFrame, measured: list[np.ndarray] | None
) -> list[dict[str, Any]]:
    """The share of the pushes on chosen and on rejected completions, each side's size by itself."""
    weight = rows["weight"].to_numpy()
    lengths = measured or [np.ones(rows.height)] * 2
    pushes = [float((weight * np.abs(w) * g).sum()) for w, g in zip(values, lengths, strict=True)]
    whole = max(sum(pushes), 1e-300)
    return [
        {"name": side, "rows": rows.height, "row_share": 0.5, "mass_share": push / whole}
        for side, push in zip(("chosen", "rejected"), pushes, strict=True)
    ]


def _effective(masses: np.ndarray) -> float:
    """Kish's effective sample size, (Σm)²/Σm²: as many rows of equal mass would give as noisy a mean."""
    squares = float((masses**2).sum())
    return float(masses.sum()) ** 2 / squares if squares else 0.0


def _fewest_for_half(masses: np.ndarray) -> int:
    """How few rows hold half of the mass."""
    if not masses.sum():
        return 0
    return int(np.searchsorted(np.cumsum(np.sort(masses)[::-1]), masses.sum() / 2)) + 1


def _flips(values: list[np.ndarray], rows: pl.DataFrame, table: str) -> dict[str, float]:
    """Shares of rows that are pushed against their label, and of those that are not pushed at all."""
    if table == "paired":
        return {
            "chosen pushed down": float((values[0] < 0).mean()),
            "rejected pushed up": float((values[1] < 0).mean()),
            "not pushed": float(((values[0] == 0) & (values[1] == 0)).mean()),
        }
    flips = {"not pushed": float((values[0] == 0).mean())}
    if "label" in rows.columns and not rows["label"].null_count():
        label = rows["label"].to_numpy()
        against = {"desirable pushed down": label & (values[0] < 0), "undesirable pushed up": ~label & (values[0] > 0)}
        return {name: float(rows_against.mean()) for name, rows_against in against.items()} | flips
    return {"pushed down": float((values[0] < 0).mean())} | flips


def _top(masses: np.ndarray, values: list[np.ndarray], rows: pl.DataFrame, table: str) -> list[dict[str, Any]]:
    """The rows of the largest mass; none where all are level, for then none stands out."""
    if not masses.size or np.ptp(masses) <= 1e-9 * masses.max():
        return []
    whole = float(masses.sum())
    names = ("w_chosen", "w_rejected") if table == "paired" else ("w",)
    return [
        {
            "id": rows[KEYS[table]][i],
            "source": rows["source"][i],
            "category": rows["category"][i],
            "share": float(masses[i]) / whole,
            "times_mean": float(masses[i]) / whole * len(masses),
            **{name: float(w[i]) for name, w in zip(names, values, strict=True)},
            **{n: rows[n][i] for n in ("n_tokens", "chosen_n_tokens", "rejected_n_tokens") if n in rows.columns},
        }
        for i in np.argsort(-masses, kind="stable")[:TOP].tolist()
    ]


def _add_texts(told: list[dict[str, Any]], opened: Snapshot, table: str, split: str) -> None:
    """The texts of the rows that dominate, cut short, in place."""
    key = KEYS[table]
    wanted = {row["id"] for one in told for row in one["top"]}
    texts = ("chosen", "rejected") if table == "paired" else ("completion",)
    found = opened.scan(split).filter(pl.col(key).is_in(list(wanted))).select(key, "prompt", *texts).collect()
    by_id = {row[key]: row for row in found.iter_rows(named=True)}
    for one in told:
        for row in one["top"]:
            text = by_id[row["id"]]
            row["prompt"] = (text["prompt"][-1]["content"] if text["prompt"] else "")[:TEXT]
            row.update({name: (text[name] or "")[:TEXT] for name in texts})


def _agreement(
    found: dict[str, tuple[list[np.ndarray], np.ndarray]], rows: pl.DataFrame, table: str
) -> list[dict[str, Any]]:
    """Of every two rules: Spearman's correlation of their pushes, and how often these have other signs.

    A row's push is w₊ + w₋, or w. A rule that pushes all rows alike ranks none: the correlation is then None.
    """
    pushes = {label: np.sum(values, axis=0) for label, (values, _) in found.items()}
    ranks = {label: pl.Series(_rounded(push)).rank().to_numpy() for label, push in pushes.items()}
    agreement = []
    for one, other in combinations(pushes, 2):
        level = any(np.ptp(ranks[label]) == 0 for label in (one, other)) if rows.height else True
        rank = None if level else float(np.corrcoef(ranks[one], ranks[other])[0, 1])
        signs = [[np.sign(w) for w in found[label][0]] for label in (one, other)]
        apart = np.any([a * b < 0 for a, b in zip(*signs, strict=True)], axis=0)
        agreement.append({"one": one, "other": other, "rank": rank, "signs_differ": float(apart.mean())})
    return agreement


def _rounded(values: np.ndarray) -> np.ndarray:
    """Without the last digits: what differs by rounding alone has one rank."""
    with np.errstate(all="ignore"):
        step = 10.0 ** (np.floor(np.log10(np.abs(values))) - 11)
    return np.where(values == 0, 0.0, np.round(values / np.where(values == 0, 1, step)) * step)


def _predictor(known: Sizes | None, counted: bool) -> dict[str, Any]:
    if not counted:
        return {"kind": "weights", "exponent": None, "sources": {}}
    if known is None:
        return {"kind": "formula", "exponent": Sizes().exponent, "sources": {}}
    return {
        "kind": "probe",
        "exponent": known.exponent,
        "sources": {name: size._asdict() for name, size in known.by_source.items()},
    }
