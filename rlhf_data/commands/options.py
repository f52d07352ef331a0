"""What commands share: options, and the specs and the workspace that these name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlhf_data.plan import Workspace
    from rlhf_data.spec import Spec

SpecPath = Annotated[Path, typer.Argument(help="A spec, or a folder of specs, run in the order of their references.")]
SnapshotPlace = Annotated[
    str, typer.Argument(help="A snapshot, the folder of its versions, or a spec's name; @previous or @ID after it.")
]
WorkspacePath = Annotated[Path, typer.Option("--workspace", "-w", help="Cache, scores and runs live here.")]
Variables = Annotated[list[str] | None, typer.Option("--var", help="NAME=VALUE for ${NAME} in the spec.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the spec, such as train.beta=0.2.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N records of each raw file: a quick look.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DEFAULT_WORKSPACE = Path(".rlhf")


def read_specs(place: Path, variables: list[str] | None, overrides: list[str] | None, workspace: Path) -> list["Spec"]:
    """The specs of a place, read and checked whole before the first of them runs."""
    from rlhf_data.spec import check as check_all
    from rlhf_data.spec import read_all

    specs = read_all(place, variables=name_values(variables, "--var"), overrides=name_values(overrides, "--set"))
    check_all(specs, open_workspace(workspace))
    return [one for one, _ in specs.values()]


def name_values(texts: list[str] | None, option: str) -> dict[str, str]:
    """What NAME=VALUE texts say; `option` is the one that they were given to."""
    wrong = [text for text in texts or [] if "=" not in text]
    if wrong:
        raise typer.BadParameter(f"{option} {wrong[0]}: write NAME=VALUE")
    return dict(text.split("=", 1) for text in texts or [])


def open_workspace(root: Path) -> "Workspace":
    """The workspace under `root`, perhaps empty yet."""
    from rlhf_data.plan import Workspace

    return Workspace(root)


def named_model(name: str, workspace: "Workspace") -> dict[str, Any]:
    """The model that a person names: a folder, a hub id, or run:NAME, the latest policy of a spec."""
    from rlhf_data.plan import resolve_model

    return resolve_model({"run": name[4:]}, workspace) if name.startswith("run:") else {"path": name}
