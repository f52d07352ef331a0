"""One HTML page for what changed between two snapshots."""

from typing import Any

from rlhf_data.report.display import environment


def diff_page(found: dict[str, Any], meaning: dict[str, str]) -> str:
    """The difference of two snapshots as one HTML document that needs no other file.

    Args:
        found: what `inspect.diff.diff` gives.
        meaning: each kind of change in words.
    """
    was, now = (sum(found[side]["rows"].values()) for side in ("before", "after"))
    by = {"source and category": ("source", "category"), "raw file": ("file",)}
    groups = [
        (title, *across(found[name], keys)) for (title, keys), name in zip(by.items(), ("groups", "files"), strict=True)
    ]
    rows = {kind: [{"texts_before": None, **row} for row in few] for kind, few in found["examples"].items()}
    return (
        environment()
        .get_template("diff.html.j2")
        .render(
            d={**found, "examples": rows},
            was=was,
            now=now,
            meaning=meaning,
            widest=max(found["kinds"].values(), default=1),
            groups=[group for group in groups if group[2]],
        )
    )


def across(groups: list[dict[str, Any]], by: tuple[str, ...]) -> tuple[list[str], list[dict[str, Any]]]:
    """Counts by kind of change, one line for each group, the largest first.

    Args:
        groups: mappings of kind, rows and the columns of `by`.
        by: what makes a group.

    Returns:
        the kinds, in the order in which they come, and for each group its key, its name and its counts by kind.
    """
    kinds = list(dict.fromkeys(group["kind"] for group in groups))
    counted: dict[tuple[Any, ...], dict[str, int]] = {}
    for group in groups:
        counted.setdefault(tuple(group[key] for key in by), {})[group["kind"]] = group["rows"]
    lines = [
        {"key": key, "name": ", ".join(str(part) for part in key if part is not None), "counts": counts}
        for key, counts in counted.items()
    ]
    return kinds, sorted(lines, key=lambda line: -sum(line["counts"].values()))
