"""Functions run by several processes that know each other, over gloo on a CPU."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def together(world: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` gives on each of `world` ranks; an error of any is raised here, with its traceback.

    The function must stand in a module that can be imported. What it returns is written by torch.save.
    """
    folder.mkdir(parents=True)
    # The server imports torch once and forks; it has no threads, which a fork of this process would lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.together", "tests.training.test_ranks"])
    ranks = [context.Process(target=_rank, args=(n, world, folder, function, arguments)) for n in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        if rank.is_alive():
            rank.kill()
    for n in range(world):
        if (folder / f"error-{n}").is_file():
            raise AssertionError((folder / f"error-{n}").read_text())
    return [torch.load(folder / f"result-{n}.pt") for n in range(world)]


def _rank(rank: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        torch.save(function(*arguments), folder / f"result-{rank}.pt")
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise
