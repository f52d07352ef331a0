"""A project in a folder: raw files, a spec, the commands."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_data.cli import run_command
from rlhf_data.snapshot import Snapshot

SPEC = """version: 1
name: demo
about: Rated answers to pairs.
seed: 7
sources:
  a: {path: raw/*.jsonl}
rate: {by: rating, scale: [1, 5]}
split: {test: 0.2}
shape: {to: paired, pairing: all}
publish: {to: snapshots/demo}
"""


def ratings(prompts: int = 12, answers: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {p}?",
            "completion": f"answer {a} to {p}",
            "rating": 1 + (a * 2 + p) % 5,
            "category": "xy"[p % 2],
        }
        for p in range(prompts)
        for a in range(answers)
    ]


class Project:
    """The current folder while a test runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def raw(self, rows: Iterable[Any], name: str = "r.jsonl") -> Path:
        """Write a raw file; a text among the rows is written as it is."""
        path = self.folder / "raw" / name
        path.parent.mkdir(exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def spec(self, text: str = SPEC, name: str = "demo.yaml") -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def build(self, *arguments: str) -> int:
        return run_command(["build", "demo.yaml", *arguments])

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.folder / "snapshots" / "demo")

    @property
    def versions(self) -> list[str]:
        return sorted(p.parent.name for p in (self.folder / "snapshots" / "demo").glob("[!.]*/_SUCCESS"))

    @property
    def left_over(self) -> list[Path]:
        """Temporary files and folders that nobody removed."""
        return sorted(self.folder.rglob("*.tmp"))
