"""The dataset card: README.md of a snapshot, by which `datasets.load_dataset(folder)` finds the splits."""

from collections.abc import Collection
from typing import Any

import polars as pl

from rlhf_data import tables
from rlhf_data.report.display import environment
from rlhf_data.report.facts import SPLITS
from rlhf_data.report.snapshot import licenses, whole

# Licences that the Hugging Face hub knows by these names; whatever is not here is `other` there.
FAMILIES = {
    "": "mit bsd bsd-2-clause bsd-3-clause unlicense wtfpl odc-by odbl pddl openrail apache-2.0 mpl-2.0 afl-3.0 gemma",
    "cc": " 0-1.0 -by-2.0 -by-2.5 -by-3.0 -by-4.0 -by-sa-3.0 -by-sa-4.0 -by-nd-4.0",
    "cc-by-nc": "-2.0 -3.0 -4.0 -sa-2.0 -sa-3.0 -sa-4.0 -nd-3.0 -nd-4.0",
    "gpl": " -2.0 -3.0",
    "cdla": "-permissive-1.0 -permissive-2.0 -sharing-1.0",
    "llama": "2 3 3.1 3.2 3.3",
}
HUB_LICENSES = {family + end for family, ends in FAMILIES.items() for end in ends.split(" ")}
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
# What a reader asks of the columns whose contract has no words for them.
WORDS = {
    "prompt_id": "hash of the exact messages",
    "pair_id": "hash of chosen_id and rejected_id",
    "completion_id": "hash of the prompt and the completion",
    "chosen_id": "completion_id of the chosen completion",
    "rejected_id": "completion_id of the rejected completion",
    "chosen": "the preferred completion",
    "rejected": "the other completion",
    "completion": "the completion",
    "chosen_reward": "what a rule consumes",
    "rejected_reward": "what a rule consumes",
    "reward_std": "standard deviation of the reward",
    "votes": "judgments behind the row",
    "chosen_n_tokens": "completion tokens that were scored",
    "rejected_n_tokens": "completion tokens that were scored",
    "n_tokens": "completion tokens that were scored",
    "ref_mismatched_logps": "nats",
    "truncated": "whether a text was cut to be scored",
    "source": "the source's name in the spec",
    "category": "what the prompt is about",
    "split": "train, validation or test",
}


def card(manifest: dict[str, Any]) -> str:
    """The dataset card of a snapshot.

    Args:
        manifest: the snapshot's manifest.json.

    Returns:
        README.md with YAML front matter: licence, tags, and the data files of each split that has rows.
    """
    m = whole(manifest)
    rows = {split: n for split, n in m["rows"].items() if n} or m["rows"]
    n, declared = sum(rows.values()), licenses(m)
    text = (
        environment(html=False)
        .get_template("card.md.j2")
        .render(
            m=m,
            splits=[s for s in (*SPLITS, *sorted(rows.keys() - set(SPLITS))) if s in rows],
            rows=rows,
            n=n,
            unit="preference pair" if m["table"] == "paired" else "completion",
            license=_license(m),
            licenses=declared,
            size=next((words for most, words in SIZES.items() if n < most), "n>10M"),
            columns=columns(m["table"], (m["score"] or {}).get("columns", ()), m.get("kept") or ()),
            scored=bool(m["score"]),
            accounting=[
                {
                    **line,
                    **{kind: sum((line.get(kind) or {}).values()) for kind in ("merged", "filtered", "quarantined")},
                }
                for line in m["accounting"]
            ],
        )
    )
    return text.rstrip() + "\n"


def columns(table: str, further: Collection[str] = (), kept: Collection[str] = ()) -> list[dict[str, Any]]:
    """Name, type in words, whether it may be null, and the contract's description of each column of a table.

    `further` names the optional ones that it has, `kept` those that its spec's `keep_columns` adds.
    """
    optional = {name: dtype for name, dtype in tables.optional_columns(table).items() if name in further}
    contract, types = tables.contract(table), tables.columns(table) | optional
    return [
        {
            "name": name,
            "type": _words(dtype),
            "nullable": bool(contract.columns[name].nullable),
            "about": contract.columns[name].description or WORDS.get(name, ""),
        }
        for name, dtype in types.items()
    ] + [{"name": name, "type": "string", "nullable": True, "about": "a raw column, kept"} for name in kept]


def _license(m: dict[str, Any]) -> str:
    """The hub's name of the one licence of all sources; else `other`."""
    names = {(source.get("license") or "").strip().lower() for source in m["sources"].values()}
    return names.pop() if len(names) == 1 and names <= HUB_LICENSES else "other"


def _words(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return f"list of {_words(dtype.inner)}"  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return "{" + ", ".join(field.name for field in dtype.fields) + "}"
    return {"Boolean": "bool"}.get(str(dtype), str(dtype).lower())
