"""Draft a spec from a raw file: which adapter reads it, or which columns probably mean what."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import polars as pl

from rlhf_data import sources
from rlhf_data.sources import cells, mapping, readers
from rlhf_data.sources.hh_rlhf import FIRST_TURN
from rlhf_data.sources.readers import Raw
from rlhf_data.sources.ultrafeedback import ASPECTS

# What the columns of raw data are usually called, likeliest first.
NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "messages", "conversations", "conversation",
               "input", "context"),
    "system": ("system", "system_prompt"),
    "chosen": ("chosen", "preferred", "chosen_response", "better"),
    "rejected": ("rejected", "dispreferred", "rejected_response", "worse"),
    "completion": ("completion", "response", "answer", "output", "reply", "summary", "response_a", "answer_a",
                   "output_1", "response1", "answer1"),
    "other": ("response_b", "answer_b", "output_2", "response2", "answer2"),
    "preference": ("preference", "winner", "verdict", "choice"),
    "rating": ("rating", "score", "reward", "overall_score", "stars", "grade"),
    "rank": ("rank", "ranking"),
    "label": ("label", "thumb", "thumbs", "thumbs_up", "feedback", "is_good", "liked", "is_factual"),
    "annotator": ("annotator", "worker", "worker_id", "rater", "judge", "annotator_id"),
    "category": ("category", "subset", "domain", "task", "topic"),
    "model": ("model", "generator", "model_name"),
}  # fmt: skip
_TEXT_FIELDS = ("content", "value", "text")
_TEXT_LIKE = (pl.String, pl.Null)


def sniff(path: str | Path) -> str:
    """The text of a spec that reads a raw file, with comments on what was guessed.

    Args:
        path: the file; its first records are looked at.

    Raises:
        ValueError: the file cannot be read, or holds no record.
    """
    raw = readers.peek(path)
    types = cells.types(raw)
    if not types:
        raise ValueError(f"{path}: holds no records")
    name = re.sub(r"[^a-z0-9]+", "_", Path(path).name.split(".")[0].lower()).strip("_") or "data"
    adapter = _adapter(raw, types)
    if adapter is not None:
        return _spec(name, path, _adapter_lines(adapter), *_WAYS[adapter])
    columns = guess(types)
    return _spec(name, path, _column_lines(columns, types, raw), *_way(columns))


# How what an adapter reads is rated and shaped.
_PAIRS = ("by: votes", "to: paired, pairing: as_given")
_LABELS = ("by: label", "to: unpaired, label: source")
_RANKS = ("by: rank", "to: paired, pairing: all")
_IMITATED = ("", "to: unpaired")
_WAYS = {
    **dict.fromkeys(
        ("alpaca_eval", "arena", "arena_human_preference", "helpsteer2_preference", "helpsteer3", "hh_rlhf", "llmbar",
         "orca_dpo", "pandalm", "pku_safe", "shp", "summarize_feedback", "ultrafeedback_binarized", "webgpt"),
        _PAIRS,
    ),
    **dict.fromkeys(("beavertails", "kto", "llamafactory_kto"), _LABELS),
    **dict.fromkeys(("nectar", "oasst"), _RANKS),
    **dict.fromkeys(("alpaca", "dolly", "guanaco", "sharegpt"), _IMITATED),
    "finegrained_qa": ("by: votes", "to: paired, pairing: as_given, ties: drop"),
    "helpsteer": (
        "by: aspects, scale: [0, 4], aspects: {helpfulness: 1, correctness: 1, coherence: 1}",
        "to: paired, pairing: best_vs_worst",
    ),
    "mqm": ("by: rating", "to: paired, pairing: best_vs_worst"),
    "prometheus": ("by: rating, scale: [1, 5]", "to: paired, pairing: best_vs_worst"),
    "stack_exchange": ("by: rating", "to: paired, pairing: best_vs_worst"),
    "ultrafeedback": (
        f"by: aspects, aspects: {{{', '.join(f'{aspect}: 1' for aspect in ASPECTS)}}}",
        "to: paired, pairing: best_vs_worst",
    ),
}  # fmt: skip
# Adapters whose columns other files have too: what a text must begin with.
_BEGINS = {"hh_rlhf": ("chosen", FIRST_TURN), "guanaco": ("text", "### Human:")}


def guess(types: Mapping[str, pl.DataType]) -> dict[str, Any]:
    """Which column is probably what, by the names and types of the columns; sound but for what is missing.

    A value that is a text is mapped to nothing yet: only the user knows what "A" or "thumbs up" stands for.
    """
    by_name = {column.lower(): column for column in types}
    found: dict[str, Any] = {}
    for role, names in NAMES.items():
        column = next((by_name[n] for n in names if n in by_name and by_name[n] not in found.values()), None)
        if column is not None and _fits(role, types[column]):
            found[role] = column
    if "chosen" in found and "rejected" in found:
        for role in ("completion", "other", "rating", "rank", "label", "preference"):
            found.pop(role, None)
    elif "other" not in found or "preference" not in found:
        found.pop("other", None)
        found.pop("preference", None)
    named = {role: _turns(types[found[role]]) for role in found if role in mapping.TEXTS}
    for role in ("chosen", "rejected", "completion"):
        if named.get(role) is not None:
            found[role] = {"last_of": found[role], **(named[role] or {})}
    prompt = found.get("prompt")
    if named.get("prompt"):
        found["prompt"] = {"from": prompt, **(named["prompt"] or {}), "roles": dict(_SHAREGPT)}
    if named.get("prompt") is not None and not found.keys() & {"completion", "chosen"}:
        found["completion"] = {"last_of": prompt, **(named["prompt"] or {})}
    if "prompt" not in found and isinstance(found.get("chosen"), dict) and "last_of" in found["chosen"]:
        found["prompt"] = found["chosen"]["last_of"]
    for role in ("chosen", "rejected", "completion"):
        fields = _fields(types[found[role]]) if isinstance(found.get(role), str) else set()
        text = next((name for name in _TEXT_FIELDS if name in fields), None)
        found |= {role: f"{found[role]}.{text}"} if text else {}
    return {role: found[role] for role in mapping.ROLES if role in found}


_SHAREGPT = {"human": "user", "gpt": "assistant"}


def _fits(role: str, dtype: pl.DataType) -> bool:
    if role in mapping.NUMBERS or role in mapping.NOTES:
        return not dtype.is_nested()
    if role in mapping.ANSWERS and isinstance(dtype, pl.Struct):
        return bool(_fields(dtype) & set(_TEXT_FIELDS))
    return dtype in _TEXT_LIKE or (role not in ("system", "other") and _turns(dtype) is not None)


def _turns(dtype: pl.DataType) -> dict[str, str] | None:
    """For a list of messages the names of its fields, where they are not ours; None for anything else."""
    fields = _fields(dtype.inner) if isinstance(dtype, pl.List) else set()
    if {"role", "content"} <= fields:
        return {}
    return {"role": "from", "content": "value"} if {"from", "value"} <= fields else None


def _fields(dtype: Any) -> set[str]:
    return {field.name for field in dtype.fields} if isinstance(dtype, pl.Struct) else set()


def _adapter(raw: Raw, types: Mapping[str, pl.DataType]) -> str | None:
    """The adapter whose columns the file has; the one with most of them."""
    fitting = [
        name
        for name in _WAYS
        if all(_is_of(types.get(column), wanted) for column, wanted in sources.adapter(name).TABLES["raw"].items())
    ]
    for name, (column, start) in _BEGINS.items():
        if name in fitting and not cells.table(raw, {column: pl.String()}).frame[column].str.starts_with(start).any():
            fitting.remove(name)
    judged = guess(types).keys() & {"chosen", "other", *mapping.NUMBERS}
    fitting = [name for name in fitting if not (judged and _WAYS[name] == _IMITATED)]
    return max(fitting, key=lambda name: len(sources.adapter(name).TABLES["raw"]), default=None)


def _is_of(dtype: pl.DataType | None, wanted: cells.Wanted) -> bool:
    if dtype is None:
        return False
    if isinstance(wanted, str):
        return wanted != cells.JSON or isinstance(dtype, pl.Struct)
    if wanted.is_numeric():
        return dtype.is_numeric()
    if isinstance(wanted, pl.List) and isinstance(dtype, pl.List):
        return dtype.inner == pl.Null or _is_of(cast("pl.DataType", dtype.inner), cast("pl.DataType", wanted.inner))
    if isinstance(wanted, pl.Struct) and isinstance(dtype, pl.Struct):
        return bool(_fields(wanted) & _fields(dtype))
    return type(dtype) is type(wanted)


def _adapter_lines(name: str) -> list[str]:
    given = {o: d for o, d in sources.adapter_options(name).items() if d is not None}
    needed = {o: "FILL_IN" if d is inspect.Parameter.empty else _plain(d) for o, d in given.items()}
    lines = [f"    adapter: {name}                     # guessed: the file has its columns"]
    if name == "alpaca_eval":
        lines.append("    options: {verdict: code, tie: 1.5}     # check: what do the values of `preference` mean?")
    elif needed:
        lines.append(f"    options: {{{', '.join(f'{option}: {default}' for option, default in needed.items())}}}")
    return lines


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _column_lines(columns: Mapping[str, Any], types: Mapping[str, pl.DataType], raw: Raw) -> list[str]:
    lines = ["    columns:                     # guessed from names; check each one"]
    for role, source in columns.items():
        text = _flow(source)
        if role in ("label", "preference") and isinstance(source, str) and types[source] == pl.String:
            seen = cells.table(raw, {source: pl.String()}).frame[source].drop_nulls().unique().sort().head(5).to_list()
            lines.append(f"      {role}: {{from: {text}, map: {{FILL_IN: 1}}}}      # which value means what? seen:")
            lines += [f"        # {' '.join(value.split())[:60]}" for value in seen]
        else:
            lines.append(f"      {role}: {text}")
    for role in () if "prompt" in columns else ("prompt",):
        lines.append(f"      {role}: FILL_IN            # no column was recognised")
    if not columns.keys() & {"completion", "chosen"}:
        lines.append("      completion: FILL_IN        # no column was recognised")
    if not columns.keys() & {"chosen", "rating", "label", "rank", "preference"}:
        lines.append("      rating: FILL_IN            # or label, rank, preference: no column was recognised")
    used = {path.split(".")[0] for source in columns.values() for path in mapping.paths_of(mapping.source_of(source))}
    unused = [f"{column} ({dtype})" for column, dtype in types.items() if column not in used]
    return [*lines, *(f"      # not used: {' '.join(text.split())[:90]}" for text in unused)]


def _way(columns: Mapping[str, Any]) -> tuple[str, str]:
    """How the rows are rated and shaped: pairs as given, or by what the file holds."""
    if columns.keys() & {"chosen", "other"}:
        return "by: votes", "to: paired, pairing: as_given"
    judged = next((role for role in ("rating", "label", "rank") if role in columns), "rating")
    shape = "to: unpaired, label: source" if judged == "label" else "to: paired, pairing: best_vs_worst"
    return f"by: {judged}", shape


def _spec(name: str, path: str | Path, reading: list[str], rate: str, shape: str) -> str:
    lines = [
        "# Drafted from a file by `rlhf-data init --from`; what is marked guessed is only that.",
        "version: 1",
        f"name: {_quoted(name.replace('_', '-'))}",
        "seed: 7",
        "sources:",
        f"  {_quoted(name)}:",
        f"    path: {_quoted(str(path))}",
        *reading,
        "    # license: say what it is before you pass anything on",
        *([f"rate: {{{rate}}}"] if rate else []),
        "split: {test: 0.05, by: root}",
        f"shape: {{{shape}}}",
        f"publish: {{to: snapshots/{name.replace('_', '-')}}}",
    ]
    return "\n".join([*lines, ""])


def _flow(source: Any) -> str:
    if isinstance(source, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in source.items()) + "}"
    return _quoted(source)


def _quoted(text: str) -> str:
    """A text as YAML reads it back: bare where it is surely no number, date, boolean or null."""
    plain = re.fullmatch(r"([A-Za-z_/]|\.\.?/)[\w/.\-]*( [\w.\-]+)*", text)
    word = text.lower() in ("true", "false", "null", "yes", "no", "on", "off")
    return text if plain and not word else "'" + text.replace("'", "''") + "'"
