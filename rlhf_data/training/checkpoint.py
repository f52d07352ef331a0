"""Checkpoints from which a killed run goes on as if nothing had happened.

`step-N/state.pt` holds what the run carries and the trained parameters, optimizer state and moving reference; where
ranks hold these in shares, each rank writes its own into state.pt, state-1.pt, … and none ever holds the whole. Read
again, of each tensor only the rows that a rank holds now leave the disk, so a run may go on with other ranks or shares.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_data.files import whole_folder
from rlhf_data.training.ranks import Ranks, agreed, by_first
from rlhf_data.training.sharding import first_row, held

_KEPT = 2


def save(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    reference: Sequence[Tensor],
    carried: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Write `folder`/step-N and drop all but the last two; all ranks must ask.

    The data order, the learning rate and what dropout draws follow from the step, so trained parameters, optimizer
    state, `reference` (a moving one's values) and `carried` (numbers, such as what rules remember) are all there is to
    keep. Frozen parameters stay where they were read.
    """
    sharded = any(isinstance(tensor, DTensor) for tensor in _trained(model).values())
    state = {
        "model": {name: held(tensor.detach()) for name, tensor in _trained(model).items()},
        "optimizer": {
            name: {key: held(value) for key, value in optimizer.state[tensor].items()}
            for name, tensor in _trained(model).items()
            if tensor in optimizer.state
        },
        "reference": [held(value) for value in reference],
    }
    said = {"step": step, "ranks": ranks.world, "files": ranks.world if sharded else 1, "carried": carried}
    with whole_folder(folder / f"step-{step}", lasting=True) if ranks.first else nullcontext(folder) as own:
        if sharded:
            out = Path(by_first(ranks, lambda: str(own)))
            agreed(ranks, lambda: torch.save(said | state, out / _file(ranks.rank)))
        elif ranks.first:
            torch.save(said | state, own / _file(0))
    if ranks.first:
        for old in _steps(folder)[:-_KEPT]:
            shutil.rmtree(folder / f"step-{old}")


def restore(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, reference: Sequence[Tensor]
) -> dict[str, Any]:
    """Load the last checkpoint, if any, into model, optimizer and reference, of each tensor what this rank holds.

    Returns:
        step (the steps it has behind it), ranks (how many wrote it) and what the run carried; {} where there is none.

    Raises:
        ValueError: it is damaged, or a file of it is not there.
    """
    steps = _steps(folder)
    if not steps:
        return {}
    path = folder / f"step-{steps[-1]}"
    try:
        # Mapped, not read: what lies in other ranks' rows costs no memory.
        first = torch.load(path / _file(0), map_location="cpu", weights_only=True, mmap=True)
        others = (path / _file(rank) for rank in range(1, first["files"]))
        states = [first, *(torch.load(one, map_location="cpu", weights_only=True, mmap=True) for one in others)]
        for tensor, parts in _places(model, optimizer, reference, states):
            _fill(tensor, parts)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read: delete this folder to resume from the one before ({error})"
        ) from error
    return {"step": first["step"], "ranks": first["ranks"], **first["carried"]}


@torch.no_grad()
def _places(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    reference: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Every tensor that a checkpoint fills, with its parts in the order of the files."""
    for name, parameter in _trained(model).items():
        yield parameter.detach(), [state["model"][name] for state in states]
        for key, one in states[0]["optimizer"].get(name, {}).items():
            fresh = torch.zeros_like(parameter.detach()) if one.ndim else torch.zeros_like(one, device=parameter.device)
            optimizer.state[parameter][key] = fresh
            yield fresh, [state["optimizer"][name][key] for state in states]
    for i, value in enumerate(reference):
        yield value, [state["reference"][i] for state in states]


def _fill(tensor: Tensor, parts: Sequence[Tensor]) -> None:
    """Write into what this rank holds of a tensor its rows of `parts`, which are the tensor end to end."""
    mine = held(tensor)
    if not mine.ndim:  # a count of steps, the same on every rank
        mine.copy_(parts[0])
        return
    if (rows := sum(map(len, parts))) != len(tensor):
        raise ValueError(f"it has {rows} rows of a tensor of {len(tensor)}")
    begin = first_row(tensor)
    for part in parts:
        low, high = max(begin, 0), min(begin + len(mine), len(part))  # in the part's own rows
        if low < high:
            mine[low - begin : high - begin].copy_(part[low:high])
        begin -= len(part)


def _trained(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _file(rank: int) -> str:
    return f"state-{rank}.pt" if rank else "state.pt"


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
