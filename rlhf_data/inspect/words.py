"""What `diff`, `query`, `explain`, `gc` and `show` found, as lines for a terminal."""

import json
from collections.abc import Sequence
from typing import Any

from rlhf_data.inspect.diff import KINDS
from rlhf_data.report.diff import across
from rlhf_data.report.display import clean, figure, label, model_name, plural, size, when
from rlhf_data.snapshot import TEXTS
from rlhf_data.tables import KEPT

BRIEF = (
    "pair_id",
    "completion_id",
    "chosen_id",
    "rejected_id",
    "reward",
    "margin",
    "label",
    "weight",
    "split",
    "source",
)
GROUPS = 12  # groups, files and reasons that are shown of each; --json has all
SCREEN = 160  # characters of a line
TEXT = 220  # characters of a text


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int = 40) -> list[str]:
    """Columns under their names, numbers to the right; values longer than `width` are cut.

    A table too wide for a screen is shown row by row, a line for each value.
    """
    cells = [[_cell(value, width) for value in row] for row in rows]
    names = [_cell(name, width) for name in columns]
    wide = [max([len(name), *(len(row[k]) for row in cells)]) for k, name in enumerate(names)]
    if sum(wide) + 2 * len(wide) > SCREEN:
        longest = max(map(len, names))
        shown = [[_cell(value, SCREEN - longest - 4) for value in row] for row in rows]
        return [
            line for row in shown for line in ["", *(f"{n:<{longest}}  {v}" for n, v in zip(names, row, strict=True))]
        ]
    right = [
        all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(names)
    lines = [names, ["-" * n for n in wide], *cells]
    return [
        "  ".join(_pad(cell, n, r) for cell, n, r in zip(line, wide, right, strict=True)).rstrip() for line in lines
    ]


def text(value: Any, limit: int = TEXT) -> str:
    """A text, or messages, on one line."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        many = len(value) > 1
        value = " ⏎ ".join(f"{turn['role']}: {turn['content']}" if many else turn["content"] for turn in value)
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    flat = " ".join(clean(line[: limit * 2]).split())
    cut = len(line) > limit * 2 or len(flat) > limit
    return f"{flat[:limit].rstrip()} … ({len(line):,} characters)" if cut else flat


def declared(section: Any) -> str:
    """A section of a spec on one line, as YAML."""
    if isinstance(section, dict):
        return "{" + ", ".join(f"{key}: {declared(value)}" for key, value in section.items()) + "}"
    if isinstance(section, list):
        return "[" + ", ".join(map(declared, section)) + "]"
    if isinstance(section, float):
        return f"{section:g}"
    return clean(section) if isinstance(section, str) else json.dumps(section)


def diff(found: dict[str, Any]) -> list[str]:
    """What `diff` found."""
    before, after = found["before"], found["after"]
    name = after["name"] if before["name"] == after["name"] else f"{before['name']} → {after['name']}"
    rows = [sum(side["rows"].values()) for side in (before, after)]
    lines = [
        f"{name}, {found['table']}: {rows[0]:,} → {rows[1]:,} rows",
        f"  {before['path']}",
        f"  {after['path']}",
        "",
    ]
    lines.append(f"  {found['unchanged']:>11,}  unchanged")
    lines += [f"  {n:>11,}  {kind:<13} {KINDS[kind]}" for kind, n in found["kinds"].items()]
    for line in found["columns"]:
        by = f", all by the factor {line['factor']:.6g}" if line["factor"] is not None else ""
        means = f"mean {figure(line['mean_before'])} → {figure(line['mean_after'])}"
        lines.append(f"  {'':<11}    {line['column']}: {line['rows']:,} rows, {means}{by}")
    lines += [f"  {'':<11}    {m['rows']:,} rows from {m['before']} to {m['after']}" for m in found["splits"]]
    if found["why"]:
        lines += ["", "what else differs"]
        for part, differences in found["why"].items():
            lines += _limited(
                [f"  {part:<11} {d['name']}: {_side(d['before'])} → {_side(d['after'])}" for d in differences]
            )
    if found["groups"]:
        lines += ["", "where the rows are from"]
        lines += _across(found["groups"], ("source", "category"))
    if found["files"]:
        lines += ["", *_across(found["files"], ("file",))]
    for kind, examples in found["examples"].items():
        lines += ["", f"{kind}: {'an example' if len(examples) == 1 else 'examples'}"]
        for example in examples:
            lines += _example(example)
    return lines


def _across(groups: list[dict[str, Any]], by: tuple[str, ...]) -> list[str]:
    """One line for each group and a column for each kind of change, the largest group first."""
    kinds, found = across(groups, by)
    rows = [[*line["key"], *(line["counts"].get(kind) for kind in kinds)] for line in found]
    return _limited([f"  {line}" for line in table([*by, *kinds], rows)], 2)


def _example(example: dict[str, Any]) -> list[str]:
    was = f"  (was {example['was_id']})" if example["was_id"] else ""
    where = ", ".join(str(example[key]) for key in ("source", "category", "split") if example[key] is not None)
    lines = [f"  {example['row_id']}{was}  {where}"]
    for name, (old, new) in example["changed"].items():
        if not name.endswith("_id"):
            lines.append(f"    {name:<17} {_side(old)} → {_side(new)}")
    before = example.get("texts_before", example["texts"])
    for name in dict.fromkeys([*example["texts"], *before]):
        old, new = before.get(name), example["texts"].get(name)
        if old == new:
            lines.append(f"    {name:<17} {text(new)}")
        else:
            lines += [f"    {name:<9} before  {text(old)}", f"    {name:<9} after   {text(new)}"]
    return lines


def tables(described: list[dict[str, Any]]) -> list[str]:
    """The tables that a query can name."""
    lines = []
    for each in described:
        lines.append(f"{each['table']}  ({each['rows']:,} rows)")
        lines += [f"  {name:<20} {kind}" for name, kind in each["columns"].items()]
    return lines


def show(manifest: dict[str, Any], path: Any, found: dict[str, Any]) -> list[str]:
    """A snapshot at a glance: what it is, what is in it, some rows, and where all rows went."""
    n, about = sum(manifest["rows"].values()), manifest.get("about")
    lines = [f"{manifest['name']}{f': {about}' if about else ''}"]
    splits = ", ".join(f"{k:,} {split}" for split, k in manifest["rows"].items()) or "none"
    lines.append(f"  {manifest['table']}, {plural(n, 'row')} ({splits}) of {plural(found['prompts'], 'prompt')}")
    licences = {name: source.get("license") for name, source in manifest["sources"].items()}
    sources = [f"{name} {k:,} ({licences.get(name) or 'no licence'})" for name, k in found["sources"].items()]
    lines.append(f"  {'sources':<12}{_some(sources)}")
    for name in ("categories", "labels"):
        if found.get(name):
            lines.append(f"  {name:<12}{_some([f'{label(each)} {k:,}' for each, k in found[name].items()])}")
    for name, (least, mean, most) in found["numbers"].items():
        span = (
            f"{figure(mean)} in all rows"
            if least == most
            else f"mean {figure(mean)}, {figure(least)} to {figure(most)}"
        )
        lines.append(f"  {name:<12}{span}")
    score, scored = manifest.get("score"), "none: the spec has no score section"
    if score:
        scored = f"of {plural(found['scored'], 'row')}, by {model_name(score['model'])}"
    lines.append(f"  {'log-probs':<12}{scored}")
    codes = _some([f"{code} {k:,}" for code, k in found["refused"].items()])
    lines.append(f"  {'quarantine':<12}{codes or 'nothing was refused'}")
    lines.append(f"  {'published':<12}{when(manifest['created'])}{'; a quick look' if manifest.get('limit') else ''}")
    lines.append(f"  {'folder':<12}{path}")
    for row in found["rows"]:
        lines += ["", *_row(row)]
    return lines


def accounting(counts: list[dict[str, Any]]) -> list[str]:
    """Where the rows went: what came into each step, what went on, and why the rest did not."""
    lines = ["", "where the rows went"]
    for count in counts:
        lines.append(f"  {count['step']:<16} {count['rows_in']:>11,} {count['unit']} → {count['out']:,}")
        for kind in ("merged", "quarantined", "filtered"):
            lines += [f"  {'':<16} {n:>11,} {kind}: {reason}" for reason, n in count[kind].items()]
    return lines


def _row(row: dict[str, Any]) -> list[str]:
    """A row as it is read: its texts, then what is known of it."""
    key = "pair_id" if "pair_id" in row else "completion_id"
    rewards = {"chosen": "chosen_reward", "rejected": "rejected_reward", "completion": "reward"}
    lines = []
    for name in TEXTS:
        if row.get(name) is not None:
            reward = row.get(rewards.get(name, ""))
            worth = f"  [reward {figure(reward)}]" if reward is not None else ""
            lines.append(f"  {name:<12}{text(row[name])}{worth}")
    named = [row["source"], row["category"], row["split"]]
    told = [label(each) for each in named if each is not None]
    told += [f"{name} {figure(row[name])}" for name in ("margin", "preference", "weight") if row.get(name) is not None]
    told += ["desirable" if row["label"] else "not desirable"] if row.get("label") is not None else []
    return [*lines, f"  {'':<12}{', '.join(told)}", f"  {key:<12}{' ' if key == 'completion_id' else ''}{row[key]}"]


def _some(words: list[str], most: int = 8) -> str:
    left = len(words) - most
    return ", ".join(words) if left <= 1 else f"{', '.join(words[:most])} and {left} more"


def explain(found: dict[str, Any]) -> list[str]:
    """What `explain` found."""
    rows, judgments = found["rows"], found["judgments"]
    lines = [f"{found['kind']} {found['id']}", f"  in {found['snapshot']}"]
    if len(rows) == 1 and any(name in rows[0] for name in TEXTS):
        (row,) = rows
        where = [row["source"], row["category"], row["split"]]
        lines += [f"  {', '.join(label(each) for each in where if each is not None)}", ""]
        lines += [f"  {name:<11} {text(row[name], 400)}" for name in TEXTS if row.get(name) is not None]
        if row.get("model"):
            lines.append(f"  {'model':<11} {row['model']}")
        kept = {name: value for name, value in row.items() if name.startswith(KEPT) and value is not None}
        lines += [f"  {name:<11} {text(value, 400)}" for name, value in kept.items()]
    elif rows:
        columns = [c for c in BRIEF if c in rows[0]]
        many = f"more than {len(rows) - 1}" if len(rows) > 20 else str(len(rows))
        lines += ["", f"in {many} rows" if len(rows) > 1 else "in one row"]
        lines += [f"  {line}" for line in table(columns, [[row[c] for c in columns] for row in rows[:20]])]
    else:
        lines += ["", "in no row of the snapshot"]
    for fate in found["fate"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in fate["left_out"].items())
        said = f"  {fate['step']:<11} {declared(fate['declared'])}" if fate["declared"] else f"  {fate['step']}"
        lines += ["", f"completion {fate['completion_id']} did not come through {fate['step']}", said]
        lines += [f"  {'':<11} which left out {reasons}"] if reasons else []
    for row in found["refused"]:
        detail = f": {row['detail']}" if row["detail"] else ""
        lines += ["", f"refused by {row['step']} as {row['code']}{detail}  ({', '.join(row['raw_ref'])})"]
        lines.append(f"  {text(row['row'], 400)}")
    if found["steps"]:
        lines += ["", "how it came about"]
        for step in found["steps"]:
            lines.append(f"  {step['step']:<11} {declared(step['declared']) if step['declared'] else 'as by default'}")
            lines += [f"  {'':<11} {said}" for said in step["said"]]
    if judgments:
        lines += ["", "judgments"]
        columns = [c for c in judgments[0] if any(j[c] is not None for j in judgments)]
        known = {rows[0].get(f"{side}_id"): side for side in ("chosen", "rejected")} if len(rows) == 1 else {}
        for judgment in judgments:
            for column in ("completion_id", "other_id"):
                judgment[column] = known.get(judgment[column], (judgment[column] or "")[:12]) or None
        shown = [[j[c] for c in columns] for j in judgments]
        lines += _limited([f"  {line}" for line in table(columns, shown)], 2)
    elif judgments is None:
        lines += ["", "the steps' tables are not in the workspace any more: single judgments are not known"]
        lines.append(
            "  (the snapshot's raw_ref still names their records; building the locked spec again brings them back)"
        )
    if found["records"]:
        lines += ["", "raw records"]
    for record in found["records"]:
        lines.append(f"  {record['raw_ref']}  {record['path'] or record['source'] or ''}  {record['state']}".rstrip())
        if record["record"] is not None:
            lines.append(f"    {text(record['record'], 600)}")
    return lines


def sizes(parts: list[dict[str, Any]], *, dry: bool) -> list[str]:
    """What `gc` removed, or would remove."""
    verb = "would be removed" if dry else "removed"
    lines = [f"  {size(part['bytes']):>10}  {part['what']:<15} {part['path']}  ({part['why']})" for part in parts]
    total = size(sum(part["bytes"] for part in parts))
    return [*lines, f"{total} in {len(parts):,} places {verb}" if parts else "nothing is to be removed"]


def _limited(lines: list[str], head: int = 0) -> list[str]:
    left = len(lines) - head - GROUPS
    return lines if left <= 1 else [*lines[: head + GROUPS], f"  … and {left} more (--json has all)"]


def _side(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return text(value, 60)


def _cell(value: Any, width: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    flat = " ".join(clean(line[: 4 * width]).split())
    return flat if len(flat) <= width and len(line) <= 4 * width else flat[: width - 1] + "…"


def _pad(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
