"""The same from Python: small functions over paths; the command line's words mean the same here."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_data import engine
from rlhf_data.plan import Workspace
from rlhf_data.rules import rule
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec import Spec, check, read_all

__all__ = ["build", "open_snapshot", "read_spec", "rule", "train"]


def read_spec(
    path: Path | str,
    *,
    workspace: Path | str = ".rlhf",
    variables: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Spec:
    """A spec from its file, checked.

    Args:
        path: the YAML file.
        workspace: where the runs that it may start from are.
        variables: values for ${NAME} in it, before the environment's.
        overrides: dotted key → value as YAML, such as {"train.beta": "0.2"}.

    Raises:
        SpecError: everything that is wrong with it.
    """
    specs = read_all(Path(path), variables=variables, overrides=overrides)
    check(specs, Workspace(Path(workspace)))
    return next(spec for spec, _ in specs.values())


def build(spec: Spec | Path | str, *, workspace: Path | str = ".rlhf", limit: int | None = None) -> Snapshot:
    """Raw data → the published snapshot of a spec; only what changed is computed.

    Args:
        spec: a spec or its file.
        workspace: folder of the cache, the scores and the runs.
        limit: the first records of each raw file only.
    """
    one = spec if isinstance(spec, Spec) else read_spec(spec, workspace=workspace)
    return Snapshot(engine.build(one, Workspace(Path(workspace)), limit=limit).snapshot)


def train(spec: Spec | Path | str, *, workspace: Path | str = ".rlhf", limit: int | None = None) -> Path:
    """Train on a spec's snapshot, which is built first where it has to be; the run's folder, its model in model/."""
    one = spec if isinstance(spec, Spec) else read_spec(spec, workspace=workspace)
    build(one, workspace=workspace, limit=limit)
    return engine.train(one, Workspace(Path(workspace)), limit=limit)


def open_snapshot(path: Path | str) -> Snapshot:
    """A snapshot, by its folder or by that of its versions (then the latest): .id .manifest .scan() .dataset()."""
    return Snapshot(path)
