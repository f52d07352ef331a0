"""Checkpoints from which a killed run goes on as if nothing had happened."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_data.files import whole_folder
from rlhf_data.training.sharding import load_whole, whole_optimizer_state, whole_state

_KEPT = 2


def save(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    memory: dict[str, float],
    beside: dict[str, Any],
    *,
    writes: bool = True,
) -> None:
    """Write `folder`/step-N and drop all but the last two.

    The data order and the learning rate follow from the step, so parameters, optimizer state, what the rule remembers
    and the random state of the device are all there is to keep, and `beside`, what else a run carries from step to
    step. Frozen parameters stay where they were read. What ranks hold in shares is written whole, by the one
    that `writes`: a run may go on with another number of ranks.
    """
    frozen = _frozen(model)
    state = {
        "step": step,
        "model": {name: tensor for name, tensor in whole_state(model, kept=writes).items() if name not in frozen},
        "optimizer": whole_optimizer_state(optimizer, kept=writes),
        "memory": memory,
        "beside": beside,
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state() if model.device.type == "cuda" else None,
    }
    if not writes:
        return
    with whole_folder(folder / f"step-{step}", lasting=True) as out:
        torch.save(state, out / "state.pt")
    for old in _steps(folder)[:-_KEPT]:
        shutil.rmtree(folder / f"step-{old}")


def restore(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float] | None, dict[str, Any]]:
    """Load the last checkpoint, if any, into model and optimizer.

    Returns:
        The steps it has behind it, what the rule remembered then, and what else the run carried; 0, None and {} where
        there is none.
    """
    steps = _steps(folder)
    if not steps:
        return 0, None, {}
    path = folder / f"step-{steps[-1]}" / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: delete its folder to resume from the one before ({error})") from error
    frozen = _frozen(model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in frozen}
    load_whole(model, optimizer, kept | state["model"], state["optimizer"])
    torch.set_rng_state(state["rng"])
    if state["device_rng"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(state["device_rng"])
    return state["step"], state["memory"], state["beside"]


def _frozen(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
