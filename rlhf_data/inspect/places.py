"""Which snapshot a person means: a folder, or the name of a spec of this workspace, and which of its versions."""

from pathlib import Path
from typing import NamedTuple

from rlhf_data import files
from rlhf_data.plan import Workspace
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec.problems import did_you_mean


class Known(NamedTuple):
    """What this workspace last did for one spec.

    Attributes:
        name: the spec's name; that of a quick look ends in -limitN.
        versions: the folder of its snapshot's versions.
        retain: how many of them the spec keeps; None for all.
        steps: fingerprints of the steps of its last build, by name.
    """

    name: str
    versions: Path
    retain: int | None
    steps: dict[str, str]


def known(workspace: Workspace) -> dict[str, Known]:
    """The specs that were built in a workspace, by name."""
    found = {}
    for file in sorted((workspace.root / "last").glob("*.json")):
        facts = files.read_json(file) or {}
        to = facts.get("publish", {}).get("parameters", {}).get("to")
        if to is not None:
            steps = {name: step["fingerprint"] for name, step in facts.items() if "fingerprint" in step}
            found[file.stem] = Known(file.stem, Path(to), facts["publish"].get("retain"), steps)
    return found


def published_by(spec: Known, workspace: Workspace) -> Path | None:
    """The snapshot that the last build of a spec stands for; builds that give the same content share one."""
    pointer = workspace.step(spec.steps.get("publish", "-")) / "snapshot.json"
    told = files.read_json(pointer)
    return Path(told["path"]).resolve() if told else None


def open_at(place: str, workspace: Workspace) -> Snapshot:
    """The snapshot that `place` names.

    Args:
        place: a snapshot's folder, the folder of its versions, or a spec's name (then the latest one); after it
            perhaps @latest, @previous, or @ and the beginning of a version's id.
        workspace: whose specs are known by name.

    Raises:
        ValueError: there is none such, with what there is.
    """
    if (Path(place) / "manifest.json").is_file() or (Path(place) / "refs").is_dir():  # whatever signs are in it
        return Snapshot(place)
    where, _, version = place.partition("@")
    folder = Path(where)
    if not folder.is_dir():
        folder = _by_name(where, workspace)
    return Snapshot(_version(folder, version) if version else folder)


def latest_of_all(workspace: Workspace) -> list[Snapshot]:
    """The latest snapshot of every spec that was built in a workspace, if any; quick looks after the others."""
    folders = dict.fromkeys(spec.versions for spec in known(workspace).values())
    opened = [Snapshot(folder) for folder in folders if (folder / "refs").is_dir()]
    return sorted(opened, key=lambda snapshot: snapshot.manifest.get("limit") is not None)


def versions(folder: Path) -> list[Path]:
    """The finished snapshots of a folder of versions, oldest first."""

    def place(path: Path) -> tuple[str, int, str]:
        told = files.read_json(path / "manifest.json") or {}
        return path.name.partition("-")[0], told.get("created_ns", 0), path.name

    return sorted((mark.parent for mark in folder.glob("[!.]*/_SUCCESS")), key=place)


def _by_name(name: str, workspace: Workspace) -> Path:
    specs = known(workspace)
    if name in specs:
        return specs[name].versions
    beside = Path("snapshots") / name
    if name and beside.is_dir():
        return beside
    hint = did_you_mean(name, specs) if specs else "no spec was built there"
    raise ValueError(f"no finished snapshot at {name}: it is no folder, and no spec built in {workspace.root}; {hint}")


def _version(folder: Path, version: str) -> Path:
    """One of the versions in `folder`; where `folder` is itself a version, one of those beside it.

    Raises:
        ValueError: none, or more than one, is meant.
    """
    if (folder / "manifest.json").is_file():
        if version == "previous":
            return _before(Snapshot(folder))
        folder = folder.parent
    if version == "latest":
        return folder
    if version == "previous":
        return _before(Snapshot(folder))
    there = versions(folder)
    meant = [path for path in there if path.name.startswith(version)]
    if len(meant) != 1:
        names = ", ".join(path.name for path in (meant or there)[-8:]) or "none"
        what = "several versions begin" if meant else "no version begins"
        raise ValueError(f"{folder}: {what} with {version!r}; there are: {names}")
    return meant[0]


def _before(snapshot: Snapshot) -> Path:
    """The snapshot that was the latest when this one was published."""
    parent = snapshot.manifest.get("parent")
    there = versions(snapshot.path.parent)
    ids = [path.name for path in there]
    older = [path for path in there if path.name == parent] or there[: ids.index(snapshot.id)][-1:]
    if not older:
        raise ValueError(f"{snapshot.path} has no previous version: it is the first, or the others were removed")
    return older[0]
