"""Several processes that train one policy: who runs which rows, and what they tell each other.

torchrun starts the processes, one a device. All of them read the same rows and know the same step; each runs its share
of a step's rows, and log-probs and gradients are exchanged so that every rank takes the same step. Rank 0 alone writes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

# Rank 0 may take long over what the others wait for: a first look at many rows, or rating what a round's policy wrote.
# A process that dies ends them all, by torchrun's hand; so this is no guard against that.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's number among those that train together, and how many they are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """The ranks that torchrun started, this process alone where it did not, and this rank's device.

    Args:
        device: "cpu" or "cuda"; of several ranks each takes the GPU of its place on its machine.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size()), device
        return
    if not several:
        yield ALONE, device
        return
    if device != "cpu":
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()


def gathered(values: Tensor, counts: Sequence[int], ranks: Ranks) -> list[Tensor]:
    """Every rank's `values`, a flat tensor of `counts[rank]` numbers, which each rank must know beforehand."""
    if ranks.world == 1:
        return [values]
    padded = values.new_zeros(max(counts))
    padded[: len(values)] = values
    everyone = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(everyone, padded)
    return [one[:count] for one, count in zip(everyone, counts, strict=True)]


def sum_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Give every rank the sum of all ranks' gradients; a parameter that no rank has one for keeps None."""
    if ranks.world == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    has = has.to(trained[0].device)
    distributed.all_reduce(has, op=distributed.ReduceOp.MAX)
    for parameter, some in zip(trained, has.tolist(), strict=True):
        if some and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sums = [distributed.all_reduce(p.grad, async_op=True) for p in trained if p.grad is not None]
    for one in sums:
        assert one is not None
        one.wait()


def agreed(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` gives on this rank; where it is refused on any, every rank raises that ValueError."""
    result, refusal = _tried(work)
    if ranks.world > 1:
        refusals: list[str | None] = [None] * ranks.world
        distributed.all_gather_object(refusals, refusal)
        refusal = next((one for one in refusals if one is not None), None)
    if refusal is not None:
        raise ValueError(refusal)
    return result


def by_first(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, which alone does it; must be small, as it is sent to the others."""
    said: list[Any] = [_tried(work)] if ranks.first else [None]
    if ranks.world > 1:
        distributed.broadcast_object_list(said, src=0)
    result, refusal = said[0]
    if refusal is not None:
        raise ValueError(refusal)
    return result


def _tried(work: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return work(), None
    except ValueError as error:
        return None, str(error)
