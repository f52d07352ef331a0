"""Where a training row comes from: raw records, judgments, and what each step made of them."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids
from rlhf_data.inspect import lineage
from rlhf_data.plan import Workspace
from rlhf_data.snapshot import TEXTS, Snapshot
from rlhf_data.sources.places import find_files
from rlhf_data.sources.record import record_at

IDS = {"paired": ("pair_id", "chosen_id", "rejected_id", "prompt_id"), "unpaired": ("completion_id", "prompt_id")}
KIND = {"pair_id": "pair", "prompt_id": "prompt"}  # every other id is a completion's
SHORTEST = 4  # characters of an id
BRIEF = 20  # rows of a prompt, a completion or a record that are listed


def explain(wanted: str, snapshot: Snapshot, workspace: Workspace) -> dict[str, Any] | None:
    """Everything that is known of one row, completion, prompt or raw record.

    Args:
        wanted: the beginning of a pair_id, completion_id or prompt_id, or FILE#record as it stands in raw_ref.
        snapshot: where to look.
        workspace: holds the steps' tables, perhaps.

    Returns:
        id, kind (pair, completion, prompt, record), snapshot, rows (of the snapshot; texts only if it is one), steps
        (what each said of it: step, declared, said), judgments (None where the steps' tables are gone), refused
        (quarantine), fate (of what is in no row: step and reason), records (raw_ref, source, path, state, record). None
        where nothing of that id is known.

    Raises:
        ValueError: several ids begin so, or too little of an id is given.
    """
    steps = lineage.steps_of(snapshot, workspace)
    texts = lineage.texts_of(steps)
    first = next(iter(texts.values()), None)
    if "#" in wanted:
        kind, found = "record", wanted
        named = lineage.recorded(first, wanted) if first else []
        rows = snapshot.scan().filter(pl.col("raw_ref").list.contains(wanted))
    else:
        kind, found, named, prompts = _find(wanted.lower(), snapshot, first)
        columns = [c for c in IDS[snapshot.manifest["table"]] if c != "prompt_id" or kind == "prompt"]
        is_it = pl.any_horizontal(pl.col(column) == found for column in columns)
        rows = snapshot.scan().filter(pl.col("prompt_id").is_in(prompts) & is_it)
    held = _rows(rows, snapshot, one=kind == "pair" or snapshot.manifest["table"] == "unpaired")
    if kind == "pair" and held:
        named = [held[0]["chosen_id"], held[0]["rejected_id"]]
    judgments = lineage.judged(first, named) if first else None
    refs = _refs(held, judgments, wanted if kind == "record" else None)
    refused = lineage.refused(snapshot, [found] if kind != "record" else [], [wanted] if kind == "record" else [])
    refs += [ref for row in refused for ref in row["raw_ref"] if ref not in refs]
    if not (held or judgments or refused):
        return None
    spec = _lock(snapshot)
    return {
        "id": found,
        "kind": kind,
        "snapshot": str(snapshot.path),
        "table": snapshot.manifest["table"],
        "rows": held,
        "steps": _steps(held[0], spec, steps, texts, judgments or []) if len(held) == 1 else [],
        "judgments": judgments,
        "refused": refused,
        "fate": [] if kind == "pair" or not texts else _fate(named, held, spec, steps, texts, snapshot),
        "records": [
            _record(ref, source, snapshot, spec, workspace)
            for ref in refs[:BRIEF]
            for source in _origins(ref, [judgments or [], held, refused], snapshot)
        ],
    }


def _find(prefix: str, snapshot: Snapshot, text: Path | None) -> tuple[str, str, list[str], list[str]]:
    """Kind and whole id of what begins with `prefix`, its completions, and its prompts: files are sorted by these.

    Raises:
        ValueError: too short, or several begin so.
    """
    if len(prefix) < SHORTEST:
        raise ValueError(f"{prefix!r} is too little of an id: give its first {SHORTEST} characters, or more")
    columns = IDS[snapshot.manifest["table"]]
    begins = {column: lineage.begins(column, prefix) for column in columns}
    rows = snapshot.scan().filter(pl.any_horizontal(begins.values())).select(columns).head(10_000).collect()
    found = {
        (KIND.get(column, "completion"), value)
        for column in columns
        for value in rows.filter(begins[column])[column].unique()
    }
    named: list[str] = []
    if text is not None:  # what no row holds may still be among what was read
        more = lineage.completions(text, prefix)
        for column in ("completion_id", "prompt_id"):
            held = more.filter(lineage.begins(column, prefix))
            found |= {(KIND.get(column, "completion"), value) for value in held[column].unique()}
        named = more["completion_id"].to_list()
    if len(found) > 1:
        shown = ", ".join(f"{kind} {value}" for kind, value in sorted(found)[:4])
        raise ValueError(f"{len(found)} ids begin with {prefix!r}: {shown}{' …' if len(found) > 4 else ''}; give more")
    kind, whole = next(iter(found), ("row", prefix))
    return kind, whole, named or ([whole] if kind == "completion" else []), sorted(set(rows["prompt_id"]))


def _rows(found: pl.LazyFrame, snapshot: Snapshot, *, one: bool) -> list[dict[str, Any]]:
    """The rows, narrow; where it is one row that is explained, with its texts."""
    narrow = found.select(pl.exclude([c for c in TEXTS if c in found.collect_schema()]))
    rows = narrow.head(BRIEF + 1).collect().to_dicts()
    if one and len(rows) == 1:
        key = "pair_id" if "pair_id" in rows[0] else "completion_id"
        near = (pl.col("prompt_id") == rows[0]["prompt_id"]) & (pl.col(key) == rows[0][key])
        return snapshot.scan().filter(near).collect().to_dicts()
    return rows


def _refs(rows: list[dict[str, Any]], judgments: list[dict[str, Any]] | None, asked: str | None) -> list[str]:
    refs = [asked] if asked else []
    refs += [ref for row in rows[:1] for ref in row["raw_ref"]] if not asked else []
    refs += [judgment["raw_ref"] for judgment in judgments or []] if not asked else []
    return list(dict.fromkeys(refs))


def _lock(snapshot: Snapshot) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lock = snapshot.path / "spec.lock.yaml"
    try:
        return YAML(typ="safe").load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    except (YAMLError, UnicodeDecodeError):
        raise ValueError(f"{lock} is damaged: remove {snapshot.path} and build it again") from None


def _steps(
    row: dict[str, Any],
    spec: dict[str, Any],
    steps: dict[str, Path],
    texts: dict[str, Path],
    judgments: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """What each step made of one row: what the spec declares, and arithmetic that was checked against the row."""
    ways = {
        "rate": _rated(row, spec.get("rate") or {}, steps, texts, judgments),
        "split": _placed(row, spec.get("split") or {}),
        "shape": _shaped(row),
        "weigh": _weighed(row, (spec.get("weigh") or {}).get("weight") or {}),
        "score": _scored(row) if spec.get("score") else [],
    }
    return [
        {"step": step, "declared": spec.get(step), "said": said}
        for step, said in ways.items()
        if said or spec.get(step)
    ]


def _rated(
    row: dict[str, Any],
    declared: dict[str, Any],
    steps: dict[str, Path],
    texts: dict[str, Path],
    judgments: list[dict[str, Any]],
) -> list[str]:
    """How judgments became the rewards of the row's answers, and the preference of a compared pair."""
    sides = {"chosen": "chosen_id", "rejected": "rejected_id"} if "pair_id" in row else {"completion": "completion_id"}
    if "rate" not in steps or not texts:
        rewards = ((side, row.get("reward" if side == "completion" else f"{side}_reward")) for side in sides)
        return [f"{side}: reward {reward:.6g}" for side, reward in rewards if reward is not None]
    text = list(texts.values())[-1]
    answers = [row[key] for key in sides.values()]
    said = []
    rated = lineage.naming(steps["rate"] / "rated.parquet", text, answers).filter(pl.col("source") == row["source"])
    for side, key in sides.items():
        for one in rated.filter(pl.col("completion_id") == row[key]).to_dicts():
            heard = [j for j in judgments if j["completion_id"] == row[key] and j["source"] == one["source"]]
            said.append(f"{side}: {_reward(one, heard, declared)}")
    compared = lineage.naming(steps["rate"] / "compared.parquet", text, answers)
    for one in compared.filter(pl.col("source") == row["source"]).to_dicts():
        if len(answers) == 1 or {one["chosen_id"], one["rejected_id"]} == set(answers):
            said.append(_preference(one, judgments))
    return said


def _reward(rated: dict[str, Any], judgments: list[dict[str, Any]], declared: dict[str, Any]) -> str:
    """`rating 4 = mean of 3, 5; reward 0.75 = (4 − 1) / (5 − 1)`, as far as that is how it was."""
    parts = []
    values = sorted(j["value"] for j in judgments if j["kind"] in ("rating", "rank") and j["value"] is not None)
    rating, reward = rated["rating"], rated["reward"]
    if rating is not None:
        mean = values and not declared.get("aspects") and math.isclose(sum(values) / len(values), rating)
        of = f" = mean of {_numbers(values)}" if mean and len(values) > 1 else ""
        weights = declared.get("aspects")
        of = f", the mean of {', '.join(f'{w:g} · {a}' for a, w in weights.items())}" if weights else of
        parts.append(f"rating {rating:.6g}{of}")
    if reward is not None:
        parts.append(f"reward {reward:.6g}{_of_rating(reward, rating, declared.get('scale'))}")
    if rated["reward_std"] is not None:
        parts.append(f"standard deviation {rated['reward_std']:.3g}")
    if rated["label"] is not None:
        parts.append("desirable" if rated["label"] else "not desirable")
    return f"{'; '.join(parts) or 'neither rating nor reward'} ({_counted(rated['votes'], 'judgment')})"


def _of_rating(reward: float, rating: float | None, scale: list[float] | None) -> str:
    if rating is None:
        return ""
    if scale and math.isclose(reward, (rating - scale[0]) / (scale[1] - scale[0]), abs_tol=1e-12):
        return f" = ({rating:.6g} − {scale[0]:g}) / ({scale[1]:g} − {scale[0]:g})"
    return " = the rating" if reward == rating else " = minus the place" if reward == -rating else ""


def _preference(compared: dict[str, Any], judgments: list[dict[str, Any]]) -> str:
    chosen, rejected = compared["chosen_id"], compared["rejected_id"]
    votes = sorted(
        j["value"] if j["completion_id"] == chosen else 1.0 - j["value"]
        for j in judgments
        if j["kind"] == "comparison" and {j["completion_id"], j["other_id"]} == {chosen, rejected}
        and j["source"] == compared["source"] and j["value"] is not None
    )  # fmt: skip
    mean = votes and math.isclose(sum(votes) / len(votes), compared["preference"])
    of = f" = mean of {_numbers(votes)}" if mean and len(votes) > 1 else ""
    return f"preferred with probability {compared['preference']:.6g}{of} ({_counted(compared['votes'], 'vote')})"


def _placed(row: dict[str, Any], declared: dict[str, Any]) -> list[str]:
    """Why the row is on its side of the split; the hash of the conversation's root decides."""
    from rlhf_data.shape.split import assign

    split, test, validation = row["split"], declared.get("test", 0.0), declared.get("validation", 0.0)
    if "prompt" not in row:
        return [split]
    key = ids.split_keys(pl.Series("prompt", [row["prompt"]], dtype=ids.MESSAGES))
    if assign(key, test=test, validation=validation)[0] != split:  # split by something else
        return [split]
    place = ids.keyed_fraction(key, "split")[0]
    why = {
        "test": f"< test {test:g}",
        "validation": f"≥ 1 − validation {validation:g}",
        "train": " and ".join(
            [f"≥ test {test:g}"] * (test > 0) + [f"< 1 − validation {validation:g}"] * (validation > 0)
        ),
    }[split]
    return [f"{split}: the hash of the conversation's first question is {place:.4f}{', ' if why else ''}{why}"]


def _shaped(row: dict[str, Any]) -> list[str]:
    if "pair_id" not in row:
        return [f"label {row['label']}"] if row["label"] is not None else []
    said = []
    margin, chosen, rejected = row["margin"], row["chosen_reward"], row["rejected_reward"]
    if margin is not None:
        known = chosen is not None and rejected is not None and math.isclose(margin, chosen - rejected, abs_tol=1e-12)
        said.append(f"margin {margin:.6g}" + (f" = {chosen:.6g} − {rejected:.6g}" if known else ""))
    return [*said, f"preference {row['preference']:.6g}"]


def _weighed(row: dict[str, Any], declared: dict[str, Any]) -> list[str]:
    """The factors of the row's weight, as far as they are the spec's and give the weight that it has."""
    factors = []
    for column in ("source", "category", "label"):
        by = declared.get(column)
        if by and row.get(column) in by:
            factors.append((f"{column} {row[column]}", float(by[row[column]])))
    if declared.get("row"):
        narrow = pl.DataFrame([{k: v for k, v in row.items() if k not in ("prompt", "raw_ref")}], infer_schema_length=1)
        try:
            value = narrow.select(pl.sql_expr(declared["row"]).cast(pl.Float64)).item()
        except pl.exceptions.PolarsError:
            value = None
        factors.append((declared["row"], math.nan if value is None else value))
    product = math.prod(value for _, value in factors)
    clip = declared.get("clip")
    clipped = min(product, clip) if clip is not None else product
    said = f"weight {row['weight']:.6g}"
    shown = " · ".join(f"{value:.6g} ({name})" for name, value in factors) or "1"
    if clip is not None and product > clip:
        shown = f"{clip:g} (clip of {shown})"
    known = declared.keys() <= {"source", "category", "label", "row", "clip", "normalize"}
    if known and declared.get("normalize") == "mean_one" and row["weight"] > 0 and math.isfinite(clipped):
        return [f"{said} = {shown} / {clipped / row['weight']:.6g} (the mean over train rows)"]
    return [f"{said} = {shown}" if known and math.isclose(clipped, row["weight"], rel_tol=1e-9) else said]


def _scored(row: dict[str, Any]) -> list[str]:
    named = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_mismatched_logps")
    counts = {"ref_chosen_logps": "chosen_n_tokens", "ref_rejected_logps": "rejected_n_tokens", "ref_logps": "n_tokens"}
    said = []
    for name in named:
        if row.get(name) is not None:
            tokens = row.get(counts.get(name, ""))
            said.append(f"{name} {row[name]:.6g} nats" + (f" over {tokens} tokens" if tokens else ""))
    return [*said, "cut at max_length"] if row.get("truncated") else said


def _fate(
    named: list[str],
    rows: list[dict[str, Any]],
    spec: dict[str, Any],
    steps: dict[str, Path],
    texts: dict[str, Path],
    snapshot: Snapshot,
) -> list[dict[str, Any]]:
    """For each completion that is in no row: the first step it did not come through, and what is declared there."""
    used = {row.get(key) for row in rows for key in ("chosen_id", "rejected_id", "completion_id")}
    left = [completion for completion in named[:BRIEF] if completion not in used]
    if not left:
        return []
    through = {step: {c for c in left if lineage.has(folder, c)} for step, folder in texts.items()}
    text = list(texts.values())[-1]
    if "rate" in steps:
        through["rate"] = {
            value
            for name in ("rated", "compared")
            for column in _named_in(steps["rate"] / f"{name}.parquet", text, left)
            for value in column
        }
    for step in ("shape", "weigh", "score"):
        if step in steps:
            through[step] = {v for column in _named_in(steps[step] / "rows.parquet", text, left) for v in column}
    fates = []
    for completion in left:
        lost = next((step for step, there in through.items() if completion not in there), None)
        if lost is not None:
            number = lost.partition(":")[2]
            section = spec.get("clean", [])[int(number) - 1] if number.isdigit() else spec.get(lost)
            reasons = _left(lost, snapshot)
            fates.append({"completion_id": completion, "step": lost, "declared": section, "left_out": reasons})
    return fates


def _named_in(path: Path, text: Path, completion_ids: list[str]) -> list[list[str]]:
    rows = lineage.naming(path, text, completion_ids)
    return [rows[f"{side}_id"].to_list() for side in lineage.SIDES if f"{side}_id" in rows.columns]


def _left(step: str, snapshot: Snapshot) -> dict[str, int]:
    """How many rows a step left out in all, by reason."""
    counts = [count for count in snapshot.manifest["accounting"] if count["step"] == step]
    return {reason: n for count in counts for kind in ("quarantined", "filtered") for reason, n in count[kind].items()}


def _origins(ref: str, told: list[list[dict[str, Any]]], snapshot: Snapshot) -> list[str]:
    """The sources of a raw record: files of two sources may have one name, so a raw_ref alone does not say."""
    of = [one["source"] for rows in told for one in rows if ref in _listed(one["raw_ref"])]
    name = Path(ref.rpartition("#")[0]).name
    sources = snapshot.manifest["sources"].items()
    named = [source for source, said in sources if name in [file["name"] for file in said.get("files") or []]]
    return list(dict.fromkeys(of or named or list(snapshot.manifest["sources"])[:1]))


def _listed(refs: str | list[str]) -> list[str]:
    return [refs] if isinstance(refs, str) else refs


def _record(ref: str, source: str, snapshot: Snapshot, spec: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """A raw record of a source, read back if its file is what it was."""
    name, _, number = ref.rpartition("#")
    said = snapshot.manifest["sources"].get(source, {})
    declared = (spec.get("sources") or {}).get(source) or {}
    digests = [file["digest"] for file in said.get("files") or [] if file["name"] == Path(name).name]
    there = [path for path in _files(_place(declared, said)) if path.as_posix().endswith(name)] if digests else []
    same = next((path for path in there if lineage.raw_digest(path, workspace) in digests), None)
    found = {"raw_ref": ref, "source": source, "path": str(same) if same else None}
    if same is None:
        return {**found, "record": None, "state": _missing(name, source, spec)}
    reading = {key: (declared.get("options") or {}).get(key) for key in ("quote", "separator", "sheet")}
    record = record_at(same, int(number), format=declared.get("format"), **reading)
    return {**found, "state": "as it was read", "record": record}


def _place(declared: dict[str, Any], said: dict[str, Any]) -> Any:
    """Where a source's files are: what the spec says, or the snapshot that it names."""
    return declared.get("path") or (f"{said['snapshot']['path']}/data" if said.get("snapshot") else None)


def _missing(name: str, source: str | None, spec: dict[str, Any]) -> str:
    """Why a raw record cannot be shown."""
    if "?sql" in name:
        return "a row of a query, not of a file"
    declared = (spec.get("sources") or {}).get(source or "") or {}
    if declared.get("hf"):
        return f"a record of {declared['hf']}"
    if any(path.as_posix().endswith(name) for path in _files(declared.get("path"))):
        return "the file has changed since, so its records may be others"
    return f"the file is not there any more (it was at {json.dumps(declared.get('path'))}, from where the build ran)"


def _files(path: Any) -> list[Path]:
    try:
        return [file for paths in find_files(path).values() for file in paths]
    except ValueError:
        return []


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return f"{shown}, …" if len(values) > 8 else shown
