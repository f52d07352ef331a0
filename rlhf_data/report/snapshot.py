"""One HTML page per snapshot: what is in it, where it came from, what was left out and what to look at twice."""

from typing import Any

import polars as pl

from rlhf_data.accounting import lost
from rlhf_data.report import facts
from rlhf_data.report.display import environment

LEFT = ("merged", "filtered", "quarantined")
PEOPLE = 30  # annotators that are shown


def snapshot_page(
    manifest: dict[str, Any],
    rows: pl.DataFrame | pl.LazyFrame,
    quarantine: pl.DataFrame,
    thin: pl.DataFrame | None = None,
) -> str:
    """The report of one snapshot as one HTML document that needs no other file.

    Args:
        manifest: the snapshot's manifest.json.
        rows: the whole published table, paired or unpaired, with all its splits.
        quarantine: the refused rows.
        thin: the rows as `facts.narrow` gives them, where they are at hand.

    Returns:
        The page. The same arguments give the same page; sections without data are left out.
    """
    manifest = whole(manifest)
    table = manifest["table"]
    thin = facts.narrow(rows.lazy(), table).collect(engine="streaming") if thin is None else thin
    thin = thin.with_columns(pl.col("prompt_id").hash())  # prompts are only counted here: numbers are quicker than ids
    sections = {
        "accounting": accounting(manifest["accounting"]),
        "sources": facts.by_source(thin, manifest["sources"]),
        "categories": facts.by_category(thin),
        "splits": facts.by_split(thin),
        "rewards": facts.rewards(thin, table),
        "margins": facts.margins(thin, table),
        "preference": facts.preference(thin, table),
        "labels": facts.labels(thin, table),
        "lengths": facts.lengths(thin, table),
        "weights": facts.weights(thin),
        "reference": facts.reference(thin, table),
        "quarantine": facts.refused(quarantine),
        "examples": facts.examples(rows.lazy(), table),
    }
    return (
        environment()
        .get_template("snapshot.html.j2")
        .render(
            m=manifest,
            table=table,
            unit="pair" if table == "paired" else "completion",
            rows=manifest["rows"],
            n=thin.height,
            refused=quarantine.height,
            head=facts.headline(thin) if thin.height else None,
            licenses=licenses(manifest),
            models=sorted((manifest["rating"] or {}).get("models") or [], key=_strength, reverse=True),
            annotators=annotators(manifest["rating"] or {}),
            **sections,
        )
    )


def annotators(rating: dict[str, Any]) -> dict[str, Any] | None:
    """How well people agree, and how reliable the first of them are; None where nothing is known."""
    people, agreement = rating.get("most_active") or [], rating.get("agreement") or {}
    if not (people or agreement):
        return None
    return {"agreement": agreement, "n": rating.get("annotators", len(people)), "people": people[:PEOPLE]}


def _strength(model: dict[str, Any]) -> float:
    return model["strength"]


def whole(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with None for each optional key that it leaves out, also within its files and sources."""
    optional = dict.fromkeys(
        (
            "rating",
            "about",
            "parent",
            "score",
            "limit",
            "versions",
            "content_hash",
            "spec_hash",
            "format",
            "mix",
            "moved",
        )
    )
    needed = {"rows": {}, "accounting": [], "files": [], "sources": {}}
    file = dict.fromkeys(("rows", "bytes", "digest"))
    return {
        **optional,
        **needed,
        **manifest,
        "files": [file | each for each in manifest.get("files") or []],
        "sources": {
            name: {
                **dict.fromkeys(("license", "adapter", "records")),
                **source,
                "files": [file | each for each in source.get("files") or []],
            }
            for name, source in (manifest.get("sources") or {}).items()
        },
    }


def licenses(manifest: dict[str, Any]) -> list[str]:
    """The distinct licences that the sources declare, in the sources' order."""
    names = [source["license"] for source in manifest["sources"].values() if source.get("license")]
    return list({name.lower(): name for name in reversed(names)}.values())[::-1]


def accounting(counts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Each step with its losses by reason, whether its law holds, and the parts of its bar."""
    if not counts:
        return None
    widest = max([count["rows_in"] for count in counts] + [1])
    lines = []
    for count in counts:
        left = {kind: count.get(kind) or {} for kind in LEFT}
        sums = {kind: sum(reasons.values()) for kind, reasons in left.items()}
        ways = {"out": count["out"], **sums}
        lines.append(
            {
                **count,
                "left": {kind: sorted(reasons.items(), key=lambda r: (-r[1], r[0])) for kind, reasons in left.items()},
                "sums": sums,
                "lost": count["rows_in"] - count["out"] - sum(sums.values()),
                "bar": [{"kind": kind, "n": n, "share": n / widest} for kind, n in ways.items() if n],
                "kept": count["out"] / count["rows_in"] if count["rows_in"] else None,
            }
        )
    return {
        "lines": lines,
        "kinds": [kind for kind in LEFT if any(line["sums"][kind] for line in lines)],
        "totals": {kind: lost(counts, kind).total() for kind in LEFT},
        "holds": not any(line["lost"] for line in lines),
        "notes": [note for count in counts for note in count.get("notes") or ()],
    }
