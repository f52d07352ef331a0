"""Checkpoints from which a killed run goes on as if nothing had happened."""

import shutil
from pathlib import Path

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
    *,
    writes: bool = True,
) -> None:
    """Write `folder`/step-N and drop all but the last two.

    The data order and the learning rate follow from the step, so parameters, optimizer state, what the rule remembers
    and the random state of the device are all there is to keep. What ranks hold in shares is written whole, by the one
    that `writes`: a run may go on with another number of ranks.
    """
    state = {
        "step": step,
        "model": whole_state(model, kept=writes),
        "optimizer": whole_optimizer_state(optimizer, kept=writes),
        "memory": memory,
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state() if model.device.type == "cuda" else None,
    }
    if not writes:
        return
    with whole_folder(folder / f"step-{step}", lasting=True) as beside:
        torch.save(state, beside / "state.pt")
    for old in _steps(folder)[:-_KEPT]:
        shutil.rmtree(folder / f"step-{old}")


def restore(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float] | None]:
    """Load the last checkpoint, if any, into model and optimizer.

    Returns:
        The steps it has behind it, and what the rule remembered then; 0 and None where there is none.
    """
    steps = _steps(folder)
    if not steps:
        return 0, None
    path = folder / f"step-{steps[-1]}" / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: delete its folder to resume from the one before ({error})") from error
    load_whole(model, optimizer, state["model"], state["optimizer"])
    torch.set_rng_state(state["rng"])
    if state["device_rng"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(state["device_rng"])
    return state["step"], state["memory"]


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
