"""Files and folders that appear whole or not at all, and digests of files that are computed once."""

import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xxhash import xxh3_128


def _boot() -> str:
    """What a container or a restart changes: process ids mean nothing across it."""
    marks = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid"))
    return "".join(str(mark.readlink() if mark.is_symlink() else mark.read_text()) for mark in marks if mark.exists())


# Names this machine, so that one which shares the folder does not take our work for a dead process's.
_HERE = xxh3_128(f"{socket.gethostname()}:{_boot()}".encode()).hexdigest()[:8]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while another one waits; released when the process ends, however it ends.

    Where a file system locks no folders (NFS), nobody waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105  (os.replace is documented to be atomic)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """The same for a folder; where another process was faster, its folder stays and ours vanishes.

    With `lasting` it is on the disk before it takes its name, at some milliseconds a file: only a loss of power can
    tell, and what took hours deserves it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        if lasting:
            _flush(temporary)
        if not path.is_dir():
            try:
                os.replace(temporary, path)  # noqa: PTH105
            except OSError:
                if not path.is_dir():  # nobody else was faster: a real error
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring a folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds; None where it is not there or damaged, as it can be made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest(path: Path) -> str:
    """xxh3-128 of a file's bytes."""
    hasher = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()


def digests(paths: list[Path], remembered: Path) -> list[str]:
    """Digests of files; those whose path, size and time are as they were come from the JSON file `remembered`."""
    known: dict[str, str] = read_json(remembered) or {}
    keys = [stamp(path) for path in paths]
    fresh = {key: digest(path) for key, path in zip(keys, paths, strict=True) if key not in known}
    if fresh:
        write_text(remembered, json.dumps(known | fresh, indent=0))
    return [(known | fresh)[key] for key in keys]


def stamp(path: Path) -> str:
    """What of a file's entry in its folder changes whenever the file is written: path, size, times."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def abandoned(temporary: Path) -> bool:
    """Whether a temporary file or folder is of a process of this machine that has ended."""
    marks = temporary.name.split(".")
    here, _, pid = marks[-3].rpartition("-") if len(marks) > 3 else ("", "", "")
    return here == _HERE and Path("/proc").is_dir() and not Path(f"/proc/{pid}").exists()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HERE}-{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half done in `folder`."""
    for left in folder.glob(".*.tmp"):
        if abandoned(left):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
