"""Where the raw files of a source are."""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def find_files(path: Any) -> dict[str, list[Path]]:
    """The raw files of a source by table name, sorted by name; "raw" where it has one table.

    Args:
        path: a file, a folder (all files in it), a glob, a list of these, or a mapping of table names to them; None
            for a source that has no files.

    Raises:
        ValueError: one of them matches nothing.
    """
    if path is None:
        return {}
    named = path if isinstance(path, dict) else {"raw": path}
    return {
        table: _once(file for place in ([places] if isinstance(places, str) else places) for file in _matches(place))
        for table, places in named.items()
    }


def _once(found: Iterable[Path]) -> list[Path]:
    """Each file once, however many of the places name it."""
    return list({file.resolve(): file for file in reversed(list(found))}.values())[::-1]


def _matches(place: str) -> list[Path]:
    pattern = str(Path(place).expanduser())
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207  (may be absolute)
    found = [file for match in matches for file in (_inside(match) if match.is_dir() else [match])]
    if not found:
        raise ValueError(f"no file at {place} (a relative path starts at {Path.cwd()})")
    return found


def _inside(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
