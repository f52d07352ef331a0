"""The wheel, unpacked somewhere else, builds a snapshot; its data folders are its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.project import SPEC, ratings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # The editable install puts the checkout on sys.path by a .pth file: the wheel's folder goes before it.
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); from rlhf_data.cli import run_command; "
    where = "import rlhf_data; print(rlhf_data.__file__, file=sys.stderr); "
    return subprocess.run(
        [sys.executable, "-P", "-c", code + where + f"sys.exit(run_command({list(arguments)!r}))"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(wheel)},
    )  # fmt: skip


def test_only_the_package_is_importable_and_its_data_is_inside(wheel):
    assert {p.name for p in wheel.iterdir() if not p.name.endswith(".dist-info")} == {"rlhf_data"}
    for folder in ("schemas", "pipelines", "flows"):
        there = {str(p.relative_to(ROOT / folder)) for p in (ROOT / folder).rglob("*") if p.suffix in (".yaml", ".py")}
        assert there
        assert {
            str(p.relative_to(wheel / "rlhf_data" / folder))
            for p in (wheel / "rlhf_data" / folder).rglob("*")
            if p.is_file()
        } >= there


def test_the_package_is_whole(wheel):
    suffixes = (".py", ".j2", ".css")
    there = {str(p.relative_to(ROOT)) for p in (ROOT / "rlhf_data").rglob("*") if p.suffix in suffixes}
    assert {str(p.relative_to(wheel)) for p in wheel.rglob("*") if p.suffix in suffixes} >= there


def test_it_builds_where_other_folders_have_the_names_of_its_own(wheel, project):
    import json

    (project.folder / "raw" / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratings(3)))
    for name in ("schemas", "flows", "rlhf_data"):
        (project.folder / name).mkdir()
        (project.folder / name / "paired.yaml").write_text("junk: [")
        (project.folder / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    project.spec(SPEC.replace("split: {test: 0.2}\n", ""))
    ran = run(wheel, project.folder, "build", "demo.yaml")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.startswith(str(wheel))
    assert project.snapshot.manifest["rows"] == {"train": 18}


def test_it_lays_out_its_recipes(wheel, tmp_path):
    ran = run(wheel, tmp_path, "init", "mine")
    assert ran.returncode == 0, ran.stderr
    recipes = {str(p.relative_to(ROOT)) for p in (ROOT / "pipelines").rglob("*.yaml")}
    assert {str(p.relative_to(tmp_path / "mine")) for p in (tmp_path / "mine").rglob("*.yaml")} == recipes
