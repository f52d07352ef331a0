"""Damage to what lies on the disk: what notices it, and that the same command goes on from there."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_data import files
from rlhf_data.cli import run_command
from rlhf_data.snapshot import Snapshot
from tests.project import SPEC, Project, SetAside, ratings

RAW = [*ratings(4), "{broken", {"prompt": "question 0?", "completion": "too good", "rating": 11}]
COMMAND = [sys.executable, "-m", "rlhf_data.cli", "build"]
DAMAGED = re.compile(r"(\S+) is damaged: remove (\S+) and run again")


@pytest.fixture
def disk(set_aside: SetAside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A built project, sound again for each test."""

    def build(made: Project) -> None:
        made.raw(RAW)
        made.spec()
        assert made.build() == 0

    with set_aside.copied("disk", build, monkeypatch) as made:
        yield made


def data_bytes(snapshot: Snapshot) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in snapshot.files()}


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


ACCOUNT = ("counts.json", "step.json", "chunks.json", "snapshot.json", "rating.json", "_SUCCESS")
# A flipped bit of a digest in _SUCCESS looks like one in the table that it is of, and is told as that.
SPOILT = [
    (name, how) for name in ACCOUNT for how in ("flipped", "cut", "gone") if (name, how) != ("_SUCCESS", "flipped")
]


@pytest.mark.parametrize(("name", "how"), SPOILT)
def test_a_step_whose_account_of_itself_is_damaged_runs_again(name, how, disk):
    before = data_bytes(disk.snapshot)
    damaged = list(disk.folder.glob(f".rlhf/steps/*/{name}"))
    assert damaged
    for path in damaged:
        spoil(path, how)
    assert disk.build() == 0
    assert data_bytes(disk.snapshot) == before
    assert len(disk.versions) == 1
    assert disk.snapshot.manifest["accounting"][0]["rows_in"] == len(RAW)
    assert disk.left_over == []


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", ["rated", "splits", "rows", "judgments", "completions", "quarantine"])
def test_a_damaged_table_of_a_step_is_named_or_made_again(name, how, disk, capfd):
    before = disk.snapshot.manifest["content_hash"]
    spoil(sorted(disk.folder.glob(f".rlhf/steps/*/{name}.parquet"))[0], how)
    shutil.rmtree(disk.folder / "snapshots")
    if how != "gone":
        assert disk.build() == 1
        (told,) = DAMAGED.findall(capfd.readouterr().err)
        assert name in told[0]
        assert disk.versions == []
        shutil.rmtree(told[1])
    assert disk.build() == 0
    assert disk.snapshot.manifest["content_hash"] == before


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_flipped_byte_in_a_chunk_is_noticed_where_its_texts_are_read(name, disk, capfd):
    before = disk.snapshot.manifest["content_hash"]
    (chunk,) = disk.folder.glob(f".rlhf/chunks/*/{name}.parquet")
    spoil(chunk, "flipped")
    shutil.rmtree(disk.folder / "snapshots")
    assert disk.build() == 1
    (told,) = DAMAGED.findall(capfd.readouterr().err)
    assert Path(told[0]).resolve() == chunk.resolve()
    shutil.rmtree(told[1])
    assert disk.build() == 0
    assert disk.snapshot.manifest["content_hash"] == before


@pytest.mark.parametrize("what", ["the chunk", "one of its tables", "a bit of its account"])
def test_a_chunk_that_is_not_whole_is_read_again(what, disk):
    before = disk.snapshot.manifest["content_hash"]
    (chunk,) = disk.folder.glob(".rlhf/chunks/[!.]*")
    if what == "the chunk":
        shutil.rmtree(chunk)
    else:
        spoil(
            chunk / ("prompts.parquet" if "tables" in what else "_SUCCESS"), "gone" if "tables" in what else "flipped"
        )
    shutil.rmtree(disk.folder / "snapshots")
    assert disk.build() == 0
    assert disk.snapshot.manifest["content_hash"] == before


@pytest.mark.parametrize("name", ["data/*.parquet", "manifest.json", "_SUCCESS", "quarantine/*.parquet"])
def test_a_published_file_that_is_cut_or_gone_is_published_again(name, disk):
    before = data_bytes(disk.snapshot)
    path = sorted(disk.snapshot.path.glob(name))[0]
    spoil(path, "gone" if "data" not in name and name != "manifest.json" else "cut")
    assert disk.build() == 0
    assert data_bytes(disk.snapshot) == before
    assert len(list(disk.folder.glob("snapshots/demo/*/manifest.json"))) == 2


def test_a_flipped_byte_in_a_published_file_is_noticed_by_its_digest(disk):
    """A build that has nothing to do does not read its data again; training does."""
    (first, *_) = disk.snapshot.manifest["files"]
    spoil(disk.snapshot.path / first["path"], "flipped")
    assert disk.build() == 0
    assert files.digest(disk.snapshot.path / first["path"]) != first["digest"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"no-such-snapshot\n", None])
def test_a_damaged_name_of_the_latest_snapshot_is_written_anew(content, disk):
    before = disk.snapshot.manifest["content_hash"]
    ref = disk.folder / "snapshots" / "demo" / "refs" / "latest"
    ref.unlink() if content is None else ref.write_bytes(content)
    disk.spec(SPEC.replace("Rated answers", "Judged answers"))  # publishes anew: the same rows, another card
    try:
        assert disk.build() == 0
    finally:
        disk.spec()
    assert disk.snapshot.manifest["content_hash"] == before


@pytest.mark.parametrize("name", ["digests.json", "last/demo.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_what_is_only_remembered_may_be_damaged(name, how, disk):
    before = data_bytes(disk.snapshot)
    spoil(disk.folder / ".rlhf" / name, how)
    assert disk.build() == 0
    assert data_bytes(disk.snapshot) == before


KILLED = """
import os, signal, sys
from rlhf_data import files
from rlhf_data.cli import run_command
replace, left = os.replace, int(sys.argv[1])

def deadly(source, target):
    # Dies when the file or folder is written and has not got its name yet.
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

files.os.replace = deadly
run_command(["build", "demo.yaml"])
"""


def killed(project: Project, renames: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(renames)]
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True)


def test_a_build_killed_at_any_rename_goes_on_to_the_same_bytes(disk):
    """In the middle of reading, of collecting, of rating, of publishing: wherever something is about to be whole."""
    before = data_bytes(disk.snapshot)
    for name in (".rlhf", "snapshots"):
        shutil.rmtree(disk.folder / name)
    for renames in (2, 6, 11):  # each goes on where the last one died
        died = killed(disk, renames)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert disk.versions == []
    assert disk.build() == 0
    assert data_bytes(disk.snapshot) == before
    assert disk.left_over == []


def test_two_specs_built_at_once_in_one_workspace_read_the_data_once_and_do_not_disturb_each_other(disk):
    before = data_bytes(disk.snapshot)
    for name in (".rlhf", "snapshots"):
        shutil.rmtree(disk.folder / name)
    other = SPEC.replace("name: demo", "name: other").replace("snapshots/demo", "snapshots/other")
    disk.spec(other.replace("pairing: all", "pairing: adjacent"), "other.yaml")
    both = [
        subprocess.Popen([*COMMAND, name], cwd=disk.folder, stderr=subprocess.PIPE, text=True)
        for name in ("demo.yaml", "other.yaml")
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    (disk.folder / "other.yaml").unlink()
    assert [process.returncode for process in both] == [0, 0], said
    assert data_bytes(disk.snapshot) == before
    assert Snapshot(disk.folder / "snapshots" / "other").manifest["rows"] != disk.snapshot.manifest["rows"]
    assert len(list(disk.folder.glob(".rlhf/chunks/[!.]*"))) == 1
    assert disk.left_over == []


@pytest.mark.parametrize("kilobytes", [16, 96, 230])
def test_a_disk_that_is_really_full_leaves_nothing_half_written_and_the_command_goes_on(
    kilobytes, tmp_path, monkeypatch, capfd
):
    raw = Project(tmp_path)
    raw.raw(RAW)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk of its own can be mounted here")
    try:
        project = Project(small)
        project.spec(SPEC.replace("raw/", f"{tmp_path}/raw/"))
        monkeypatch.chdir(small)
        assert project.build() == 1
        assert "no space left on the disk" in capfd.readouterr().err
        assert project.versions == project.left_over == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert project.build() == 0
        assert project.snapshot.manifest["accounting"][0]["rows_in"] == len(RAW)
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_that_may_not_grow_further_is_an_error_and_the_command_goes_on(disk):
    for name in (".rlhf", "snapshots"):
        shutil.rmtree(disk.folder / name)
    told = subprocess.run(
        [*COMMAND, "demo.yaml"],
        cwd=disk.folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500)),
    )
    assert told.returncode == 1
    assert "larger than" in told.stderr and "run the same command again" in told.stderr
    assert "Traceback" not in told.stderr
    assert disk.versions == disk.left_over == []
    assert disk.build() == 0


def test_the_command_goes_on_where_a_folder_may_not_be_written(tmp_path, monkeypatch, capfd):
    project = Project(tmp_path)
    project.raw(RAW)
    project.spec()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snapshots").write_text("a file where a folder must be")
    assert run_command(["build", "demo.yaml"]) == 1
    assert "snapshots" in capfd.readouterr().err
    assert project.left_over == []
    (tmp_path / "snapshots").unlink()
    assert project.build() == 0
