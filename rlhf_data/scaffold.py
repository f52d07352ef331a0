"""The start of a project: recipes laid out, or a spec drafted from a raw file."""

from pathlib import Path
from typing import Any

from rlhf_data import tables


def lay_out(target: Path) -> list[Path]:
    """Copy the recipes of the package into `target`; files that are there already are left alone."""
    return _copy(tables.folder("pipelines"), target)


def draft(raw: Path, folder: Path) -> Path:
    """Write a spec into `folder` that reads a raw file, from what its first records look like.

    Raises:
        ValueError: the spec is there already, or the file cannot be read.
    """
    from rlhf_data.sources.sniff import sniff

    out = folder / f"{raw.name.split('.')[0].lower()}.yaml"
    if out.exists():
        raise ValueError(f"{out} exists: remove it, or name another folder")
    text = sniff(raw)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


def _copy(source: Any, target: Path) -> list[Path]:
    made: list[Path] = []
    for entry in sorted(source.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            made += _copy(entry, target / entry.name)
        elif entry.name.endswith(".yaml") and not (target / entry.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            (target / entry.name).write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
            made.append(target / entry.name)
    return made
