"""Several processes score one request: each takes the next part that nobody has, and a dead one's part is taken over.

    torchrun --nproc-per-node 8 -m rlhf_data.scoring REQUESTS OUT --store … --model …     one process a GPU
    python -m rlhf_data.scoring REQUESTS OUT --processes 2 --store … --model …            processes of this machine

A claim is a file in a folder that all see, so machines that share a disk work together too. Claims only save work:
what is scored is known from the store, where a part that ran twice counts once.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rlhf_data.files import digest

_LEASE = 60.0  # seconds after which a claim that nobody renews is another's


class Place(NamedTuple):
    """Which of how many processes this is, in torchrun's words."""

    rank: int
    world: int
    local_rank: int


def place() -> Place:
    """This process's place: what torchrun or `launch` wrote into its environment, or the only one."""
    rank, world, local = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(int(rank or 0), int(world or 1), int(local or rank or 0))


def parts_of(rows: int) -> int:
    """Into how many parts a request of so many rows falls.

    Many enough that processes of unequal speed end together, few enough that packs stay full.

    >>> [parts_of(rows) for rows in (10, 2_000, 1_000_000)]
    [8, 31, 256]
    """
    return max(8, min(rows // 64, 256))


def claims_of(requests: Path, store: Path, how: str) -> Path:
    """The folder of the claims on a request: the same for every process that scores it so (a digest).

    One job after another on the same request must not find each other's claims: `TORCHELASTIC_RUN_ID` or the run that
    `launch` names tells them apart.
    """
    job = os.environ.get("RLHF_DATA_JOB") or os.environ.get("TORCHELASTIC_RUN_ID") or "none"
    return store / "claims" / f"{job}-{how[:16]}-{digest(requests)[:16]}"


def taken(folder: Path, names: Sequence[str], *, lease: float = _LEASE) -> Iterator[str]:
    """The names that this process gets, one at a time; asking for the next says that the one before is done.

    Ends when all are done, whoever did them. A name whose holder is dead, or has not renewed its claim for `lease`
    seconds, is given out again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Each process begins elsewhere, so that few meet at one name.
    begin = hash((os.getpid(), uuid.getnode())) % max(1, len(names))
    left = [*names[begin:], *names[:begin]]
    while left:
        held_by_others = []
        for name in left:
            if (folder / f"{name}.done").exists():
                continue
            if not _claim(folder / f"{name}.claim", lease):
                held_by_others.append(name)
                continue
            if (folder / f"{name}.done").exists():  # done between the two looks
                continue
            with _renewed(folder / f"{name}.claim", lease / 4):
                yield name
            (folder / f"{name}.done").touch()
        left = held_by_others
        if left:
            time.sleep(min(0.5, lease / 4))


def launch(command: Sequence[str], processes: int) -> list[int]:
    """Run `command` in so many processes, each with its place; their exit codes, negative where a signal ended one.

    Each gets its share of the cores.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    job = uuid.uuid4().hex
    running = []
    try:
        for rank in range(processes):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "OMP_NUM_THREADS": str(threads),
                "RLHF_DATA_JOB": job,
            }
            running.append(subprocess.Popen(list(command), env=environment))
        return [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def together(requests: Path, store: Path, how: str, score: Callable[[Path | None], None]) -> bool:
    """Score as one of several: `score(claims)` does this process's part; the first process then sees to the whole.

    Args:
        requests: what is scored.
        store: the score store, in which the claims stand.
        how: a digest of all that decides what is stored: model, template, lengths, dtype.
        score: does it.

    Returns:
        Whether this process is the first, whose `score(None)` has written the result.
    """
    here = place()
    if here.world > 1:
        score(claims_of(requests, store, how))
    if here.rank == 0:
        score(None)  # all is in the store, or was a dead process's: it runs now
    return here.rank == 0


def _claim(path: Path, lease: float) -> bool:
    """Whether this process holds the claim from now on."""
    if path.exists():
        if not _abandoned(path, lease):
            return False
        try:  # a rename works for one process only
            path.rename(path.with_suffix(f".{uuid.uuid4().hex}"))
        except FileNotFoundError:
            return False
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{uuid.getnode()} {os.getpid()}")
    except FileExistsError:
        return False
    return True


def _abandoned(path: Path, lease: float) -> bool:
    """Whether a claim's process is dead, as far as this machine can know, or has been silent for too long."""
    try:
        holder, age = path.read_text(encoding="utf-8").split(), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if len(holder) == 2 and holder[0] == str(uuid.getnode()) and not _alive(int(holder[1])):
        return True
    return age > lease


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _renewed(path: Path, seconds: float) -> Iterator[None]:
    """Touch a claim every so often while the block runs, in a thread: a long forward must not lose it."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(seconds):
            if path.exists():
                os.utime(path)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def own_command() -> list[str]:
    """The command that started this process, without --processes."""
    arguments, kept = iter(sys.argv[1:]), []
    for argument in arguments:
        if argument == "--processes":
            next(arguments, None)
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return [sys.executable, "-m", "rlhf_data.scoring", *kept]
