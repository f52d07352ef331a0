"""Parameters, gradients and optimizer state in shares, one a rank (FSDP2); and the same made whole again."""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from rlhf_data.scoring.packs import Group, Layout
from rlhf_data.training.step import measure


def shard(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Divide a model's parameters among the ranks, in place: a layer is whole only while it runs.

    The layers' weights travel in the dtype of the matrix products, which rounds them as autocast would; their
    gradients are summed in float32. `model.measure` then takes the place of `step.measure`: it is known to FSDP as a
    way to run the model, which a call of the model's parts would not be.
    """
    kinds = set(model._no_split_modules or ())
    travels = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
        fully_shard(layer, mp_policy=travels)
    fully_shard(model)
    vars(model)["measure"] = MethodType(_measure, model)
    register_fsdp_forward_method(model, "measure")


def _measure(
    model: PreTrainedModel, groups: Sequence[Group], layout: Layout, squares: bool, scores: bool
) -> tuple[list[list[Tensor]], list[list[Tensor]] | None]:
    logps, log_p2 = measure(model, groups, layout, squares, scores)
    return [[one.clone() for one in group] for group in logps], log_p2  # FSDP's hooks do not hold on views


def plain(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    """A model on the CPU like `model` was before it was divided, with `weights`, which are whole."""
    kind = type(model).__bases__[1]  # FSDP makes a class of its own, from itself and the model's
    with torch.device("meta"):
        one = kind(model.config)
    one.load_state_dict(weights, assign=True)
    one.tie_weights()
    one.generation_config = model.generation_config
    return one


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which the ranks hold shares, whole on each of them; any other as it is. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: PreTrainedModel, *, kept: bool) -> dict[str, Tensor]:
    """The model's state, whole, on the CPU where it was in shares; empty where it is not `kept`. All ranks must ask."""
    return _gathered(model.state_dict(), kept=kept)


def whole_optimizer_state(optimizer: torch.optim.Optimizer, *, kept: bool) -> dict[str, Any]:
    """The same of an optimizer."""
    state = optimizer.state_dict()
    held = {number: _gathered(values, kept=kept) for number, values in state["state"].items()}
    return {"state": held, "param_groups": state["param_groups"]} if kept else {}


def load_whole(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict[str, Any]
) -> None:
    """Load whole states, of each tensor the rank's share."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(_like(weights[name], tensor))
    optimizer.load_state_dict(moments)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                values[name] = _like(value, parameter)


def _gathered(state: dict[str, Any], *, kept: bool) -> dict[str, Any]:
    found = {}
    for name, value in state.items():
        one = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if kept:
            found[name] = one
    return found


def _like(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
