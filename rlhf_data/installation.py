"""What is installed, what the machine has, and what the workspace holds."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_data.terminal import EXTRAS

PACKAGES = ("rlhf_data", "polars", "duckdb", "pandera", "datasets", "torch", "transformers", "prefect", "fastapi")


def facts(workspace: Path) -> dict[str, Any]:
    """Versions, cores, bytes free here, and bytes of each part of the workspace."""
    parts = sorted(path for path in workspace.iterdir() if path.is_dir()) if workspace.is_dir() else []
    return {
        "python": sys.version.split()[0],
        "packages": {package: _version(package) for package in PACKAGES},
        "cores": os.cpu_count(),
        "free_bytes": shutil.disk_usage(Path.cwd()).free,
        "workspace": str(workspace.resolve()),
        "workspace_bytes": {part.name: _size(part) for part in parts},
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """The same as lines of text."""
    lines = [f"python {found['python']}, {found['cores']} cores, {found['free_bytes'] / 1e9:.1f} GB free here"]
    for package, installed in found["packages"].items():
        lines.append(f"  {package:<13} {installed or f'not installed: pip install rlhf_data[{EXTRAS.get(package)}]'}")
    lines.append(f"workspace {found['workspace']}")
    lines += [f"  {name:<13} {size / 1e6:,.1f} MB" for name, size in found["workspace_bytes"].items()]
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
