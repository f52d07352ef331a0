"""Checkpoints from which a killed run goes on as if nothing had happened."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlhf_data.files import whole_folder

_KEPT = 2


def save(
    folder: Path, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, memory: dict[str, float]
) -> None:
    """Write `folder`/step-N and drop all but the last two.

    The data order and the learning rate follow from the step, so parameters, optimizer state, what the rule remembers
    and the random state of the device are all there is to keep.
    """
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "memory": memory,
        "rng": torch.get_rng_state(),
    }
    with whole_folder(folder / f"step-{step}") as beside:
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
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["memory"]


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
