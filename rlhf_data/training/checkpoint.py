"""Checkpoints from which a killed run goes on as if nothing had happened."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_data.files import whole_folder

_KEPT = 2


def save(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    memory: dict[str, float],
    beside: dict[str, Any],
) -> None:
    """Write `folder`/step-N and drop all but the last two.

    The data order and the learning rate follow from the step, so parameters, optimizer state, what the rule remembers
    and the random state of the device are all there is to keep; `beside` is what else a run carries from step to step.
    Frozen parameters stay where they were read.
    """
    frozen = _frozen(model)
    state = {
        "step": step,
        "model": {name: value for name, value in model.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "memory": memory,
        "beside": beside,
        "rng": torch.get_rng_state(),
    }
    with whole_folder(folder / f"step-{step}") as out:
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
    lacking, unknown = model.load_state_dict(state["model"], strict=False)
    assert set(lacking) <= _frozen(model) and not unknown
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["memory"], state["beside"]


def _frozen(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
