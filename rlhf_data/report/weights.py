"""One HTML page that compares rules over a snapshot: where each one's gradient comes from, before it is paid for."""

from typing import Any

from rlhf_data.report.display import environment
from rlhf_data.report.lines import drawn

GROUPINGS = {
    "source": "Source",
    "category": "Category",
    "length": "Length",
    "label": "Label",
    "side": "Chosen and rejected",
}


def weights_page(figures: dict[str, Any]) -> str:
    """The page of `whatif.figures` as one HTML document that needs no other file.

    The same figures give the same page; groupings of one group, and sections without data, are left out.
    """
    rules = figures["rules"]
    return (
        environment()
        .get_template("weights.html.j2")
        .render(
            f=figures,
            rules=rules,
            unit="pair" if figures["table"] == "paired" else "completion",
            curves=[(one, drawn(one["curve"])) for one in rules if one["curve"]],
            groupings=[table for name, title in GROUPINGS.items() if (table := _grouping(rules, name, title))],
            flips=list(dict.fromkeys(name for one in rules for name in one["flips"])),
            matrix=_matrix(rules, figures["agreement"]),
            level=[one["label"] for one in rules if not one["top"]],
        )
    )


def _grouping(rules: list[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """One table: groups down, rules across; None where there is one group only."""
    shares = {one["label"]: one["groups"].get(name, []) for one in rules}
    lines = next(iter(shares.values()), [])
    if len(lines) < 2:
        return None
    by_rule = {label: {line["name"]: line["mass_share"] for line in each} for label, each in shares.items()}
    return {
        "title": title,
        "by": name,
        "lines": [{**line, "shares": [by_rule[label].get(line["name"], 0.0) for label in shares]} for line in lines],
        "rows_too": name != "side",
    }


def _matrix(rules: list[dict[str, Any]], agreement: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each rule its agreement with every other, in one order."""
    known = {(each["one"], each["other"]): each for each in agreement}
    known |= {(other, one): each for (one, other), each in known.items()}
    labels = [one["label"] for one in rules]
    return [{"label": a, "cells": [known.get((a, b)) for b in labels]} for a in labels] if len(labels) > 1 else []
