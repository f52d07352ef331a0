"""What no plan and no snapshot needs any more, and its removal.

Needed are the steps of each spec's last build and of each latest snapshot, down to the pieces of raw files they point
into. Builds hold the workspace's lock together; `gc` takes it alone, and does nothing while one runs. What was made or
used within the last hour stays anyway, for builds that run step by step under a scheduler.
"""

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_data import files
from rlhf_data.inspect.places import Known, known, published_by, versions
from rlhf_data.plan import Workspace, in_use
from rlhf_data.snapshot import Snapshot

DAY, HOUR = 86_400.0, 3_600.0  # seconds


def collect(
    workspace: Workspace,
    *,
    keep: int | None = None,
    older_than: float | None = None,
    scores: bool = False,
    dry: bool = False,
) -> list[dict[str, Any]]:
    """Remove what is not needed from a workspace and from the snapshots that its specs published.

    Args:
        workspace: whose.
        keep: how many versions of each snapshot stay; if not given, what its spec's `publish.retain` says, or all.
        older_than: days; whatever is younger stays, and versions that are older go, whatever the spec says.
        scores: remove the scores of models that no snapshot and no run names, too.
        dry: remove nothing.

    Returns:
        what was removed, or would be: what (snapshot, tokens, step, piece, samples, temporary, claims, scores), path,
        bytes, why; the largest first.

    Raises:
        ValueError: both `keep` and `older_than`; no such workspace; a build is running.
    """
    if not workspace.root.is_dir():
        raise ValueError(f"no workspace at {workspace.root}: name it with --workspace FOLDER")
    if keep is not None and older_than is not None:
        raise ValueError("--keep and --older-than are two ways to say what stays: give one of them")
    with in_use(workspace, alone=True):
        specs = known(workspace)
        old = _old_snapshots(workspace, specs, keep, older_than)
        going = {path for path, _ in old}
        least = HOUR if older_than is None else max(HOUR, older_than * DAY)
        found = [("snapshot", path, why) for path, why in old]
        found += _tokens(workspace, specs, going)
        found += _temporaries(workspace, specs)
        found += _claims(workspace)
        steps = _steps(workspace, specs, least)
        found += steps + _samples(workspace, {path for _, path, _ in steps}, max(least, DAY))
        found += _scores(workspace, specs, going) if scores else []
        parts = [{"what": what, "path": str(path), "bytes": _size(path), "why": why} for what, path, why in found]
        if not dry:
            for _, path, _ in found:
                _remove(path)
    return sorted(parts, key=lambda part: (-part["bytes"], part["path"]))


def _old_snapshots(
    workspace: Workspace, specs: dict[str, Known], keep: int | None, older_than: float | None
) -> list[tuple[Path, str]]:
    """Versions that may go: no latest one, none that a run was trained on, none that a kept version was made from."""
    runs = _runs(workspace)
    built = {published_by(spec, workspace) for spec in specs.values()}
    found: list[tuple[Path, str]] = []
    for folder in _folders(specs):
        there = versions(folder)
        latest = _latest(folder)
        said = [spec.retain for spec in specs.values() if spec.versions == folder]
        most = None if None in said else max(n for n in said if n is not None)
        retained = keep if keep is not None else most
        if older_than is not None:
            beyond = [path for path in there if _age(path) > older_than * DAY]
            why = f"older than {older_than:g} days"
        else:
            beyond = there[: max(0, len(there) - retained)] if retained is not None else []
            why = f"the newest {retained} of {len(there)} stay"
        beyond = [path for path in beyond if path.resolve() not in built and _age(path) > HOUR]
        found += [(path, why) for path in beyond if path.name != latest and path.name not in runs]
    going = {path for path, _ in found}
    stay = [path for folder in _folders(specs) for path in versions(folder) if path not in going]
    made_from = "".join(_said_of_sources(path) for path in stay)
    return [(path, why) for path, why in found if path.name not in made_from]


def _folders(specs: dict[str, Known]) -> list[Path]:
    """Where snapshots are, each once: specs that were built at different times may have been published to one place."""
    return list(dict.fromkeys(spec.versions for spec in specs.values()))


def _tokens(workspace: Workspace, specs: dict[str, Known], going: set[Path]) -> list[tuple[str, Path, str]]:
    """Token ids of snapshots that are gone, or go now; those under the workspace may be of a snapshot elsewhere."""
    found = []
    for place in _folders(specs):
        for path in sorted((place / "tokens").glob("[!.]*")):
            if not (place / path.name).is_dir() or place / path.name in going:
                found.append(("tokens", path, f"of the snapshot {path.name}, which is gone"))
    there = {path.name for folder in _folders(specs) for path in versions(folder) if path not in going}
    for path in sorted((workspace.root / "tokens").glob("[!.]*")):
        if path.name not in there and _newest(path) > DAY:
            found.append(("tokens", path, f"of {path.name}, no snapshot of this workspace, and made again when needed"))
    return found


def _said_of_sources(snapshot: Path) -> str:
    """Where a snapshot says what it was made from: another one is named there by its id."""
    manifest = files.read_json(snapshot / "manifest.json") or {}
    lock = snapshot / "spec.lock.yaml"
    return json.dumps(manifest.get("sources", {})) + (lock.read_text(encoding="utf-8") if lock.is_file() else "")


def _steps(workspace: Workspace, specs: dict[str, Known], least: float) -> list[tuple[str, Path, str]]:
    """Step folders that no last build and no latest snapshot leads to, and pieces that no kept step points into."""
    folders = [path for path in sorted((workspace.root / "steps").glob("[!.]*")) if path.is_dir()]
    roots = {fingerprint for spec in specs.values() for fingerprint in spec.steps.values()}
    for spec in specs.values():
        latest = _latest(spec.versions)
        theirs = latest is not None and published_by(spec, workspace) == (spec.versions / latest).resolve()
        if latest is not None and not theirs and (spec.versions / latest / "_SUCCESS").is_file():
            steps = Snapshot(spec.versions).manifest.get("steps") or {}
            roots |= {step["fingerprint"] for step in steps.values()}
    needed = set(roots)
    ahead = [*roots, *(path.name for path in folders if _age(path) <= least)]
    while ahead:
        fingerprint = ahead.pop()
        inputs = (files.read_json(workspace.step(fingerprint) / "step.json") or {}).get("inputs", {})
        new = set(inputs.values()) - needed
        needed |= new | {fingerprint}
        ahead += new
    kept = [path for path in folders if path.name in needed]
    found = [("step", path, _said(path)) for path in folders if path.name not in needed]
    pieces = {name for path in kept for name in _pieces(path)}
    for path in sorted((workspace.root / "chunks").glob("[!.]*")):
        if path.name not in pieces and _age(path) > least:
            found.append(("piece", path, "of a raw file that no step points into"))
    for path in sorted((workspace.root / "chunks" / ".files").glob("[!.]*.json")):
        if not pieces.issuperset(files.read_json(path) or []) and _age(path) > least:
            found.append(("list of pieces", path, "of a raw file that no step points into"))
    return found


def _pieces(step: Path) -> list[str]:
    """The names of the pieces of raw files that a step's tables point into."""
    named = files.read_json(step / "chunks.json") or []
    return [Path(piece[0]).name for piece in named]


def _said(step: Path) -> str:
    told = files.read_json(step / "step.json") or {}
    return f"{told.get('step', 'a step')} of an earlier build"


def _temporaries(workspace: Workspace, specs: dict[str, Known]) -> list[tuple[str, Path, str]]:
    """What processes that are gone left half written, anywhere below the workspace and beside the snapshots."""
    folders = [path for path in [workspace.root, *workspace.root.rglob("*")] if path.is_dir()]
    folders = [path for path in folders if not any(part.endswith(".tmp") for part in path.parts)]
    for spec in specs.values():
        folders += [spec.versions, spec.versions / "refs", *(spec.versions / "tokens").glob("*/*")]
    return [
        ("temporary", left, "half written, and its process is gone")
        for folder in dict.fromkeys(folders)
        for left in sorted(folder.glob(".*.tmp"))
        if files.abandoned(left) or _age(left) > DAY
    ]


def _samples(workspace: Workspace, going: set[Path], least: float) -> list[tuple[str, Path, str]]:
    """What policies wrote that no kept step has read: of rounds that are gone, of looks at a model, and unfinished."""
    told = [path for path in workspace.root.glob("steps/[!.]*/samples.json") if path.parent not in going]
    read = {(files.read_json(path) or {}).get("samples") for path in told}
    return [
        ("samples", path, "that no step has read, and that are written again when needed")
        for path in sorted(workspace.samples.glob("[!.]*"))
        if path.name not in read and _newest(path) > least
    ]


def _claims(workspace: Workspace) -> list[tuple[str, Path, str]]:
    """Who took which part of a request to score, of jobs that have ended somehow: a live one renews its claims."""
    return [
        ("claims", path, "of a job that is over; what it scored is in the store")
        for path in sorted((workspace.scores / "claims").glob("[!.]*"))
        if _newest(path) > HOUR
    ]


def _newest(folder: Path) -> float:
    """Seconds since anything in a folder was touched."""
    return min(map(_age, [folder, *folder.glob("*")]))


def _scores(workspace: Workspace, specs: dict[str, Known], going: set[Path]) -> list[tuple[str, Path, str]]:
    """The scores of models whose content no snapshot that stays and no run names."""
    stay = [path for folder in _folders(specs) for path in versions(folder) if path not in going]
    named = _texts([path / "manifest.json" for path in stay]) + _runs(workspace)
    named += _texts(path for name in ("score", "rating") for path in workspace.root.glob(f"steps/*/{name}.json"))
    found: list[tuple[str, Path, str]] = []
    for recipe in sorted(workspace.scores.glob("[!.]*/recipe.json")):
        model = (files.read_json(recipe) or {}).get("model_hash")
        if model and model not in named and _age(recipe.parent) > HOUR:
            found.append(("scores", recipe.parent, f"no snapshot and no run names the model {model[:12]}"))
    return found


def _runs(workspace: Workspace) -> str:
    """What the runs say of themselves, finished or not: the snapshot and the model that each is of."""
    return _texts(path for name in ("arguments", "manifest") for path in workspace.root.glob(f"runs/*/*/{name}.json"))


def _latest(folder: Path) -> str | None:
    ref = folder / "refs" / "latest"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def _texts(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def _age(path: Path) -> float:
    """Seconds since a folder was made, or last used: the engine marks the steps that it uses."""
    try:
        marks = [path, *path.glob("_SUCCESS")] if path.is_dir() else [path]
        return time.time() - max(mark.stat().st_mtime for mark in marks)
    except FileNotFoundError:  # its process has just finished with it
        return 0.0


def _size(path: Path) -> int:
    every = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in every if each.is_file())


def _remove(path: Path) -> None:
    """Remove a folder or file; a folder loses its mark of being whole first, so that nobody takes a half for it."""
    if path.is_dir():
        (path / "_SUCCESS").unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
