"""A project in a folder: raw files, a spec, the commands."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


def build_demo(made: Project) -> None:
    """The fixture `built`."""
    made.raw([*ratings(), "{broken", {"prompt": "question 0?", "completion": "too good", "rating": 11}])
    made.spec()
    assert made.build() == 0


class SetAside:
    """Projects that were made once and are copied for every test that wants one.

    A plan knows the folder that a snapshot is published to, so a copy stands where the first was made, one at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def copied(self, name: str, make: Callable[[Project], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
        """The current folder is the project that `make` makes, as it was then; it is gone afterwards."""
        place, kept = self.folder / name, self.folder / f"{name}-kept"
        if not kept.is_dir():
            place.mkdir()
            with monkeypatch.context() as there:
                there.chdir(place)
                make(Project(place))
            place.rename(kept)
        shutil.copytree(kept, place, symlinks=True)
        try:
            with monkeypatch.context() as there:
                there.chdir(place)
                yield Project(place)
        finally:
            shutil.rmtree(place)
