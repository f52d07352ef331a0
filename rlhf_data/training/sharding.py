"""Parameters, gradients and optimizer state in shares, one a rank (FSDP2); and the same made whole again.

Rank 0 alone reads a model's weights: the others build it without any, divide it alike, and are dealt their shares.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from rlhf_data.scoring.packs import Group, Layout
from rlhf_data.training.adapters import like
from rlhf_data.training.step import measure


def hollow(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without weights, in eval mode: what `deal` fills once it is divided."""
    with torch.device("meta"):
        return kind(config).eval()


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's parameters and buffers by name; those that are not saved too."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def deal(model: PreTrainedModel, weights: Mapping[str, Tensor] | None, device: str) -> None:
    """Give each rank its share of a divided model, a tensor at a time. All ranks must call.

    Args:
        model: divided; on ranks other than 0 it was `hollow`.
        weights: on rank 0 its `tensors` from before it was divided; None on the others.
        device: the ranks', where shares are kept.
    """
    if weights is None:
        model.to_empty(device=device)
    for name, mine in tensors(model).items():
        sent = torch.empty(mine.shape, dtype=mine.dtype, device=device)
        if weights is not None:
            sent.copy_(weights[name].detach())
        distributed.broadcast(sent, 0)
        share = held(mine.detach())
        start = first_row(mine)
        share.copy_(sent[start : start + len(share)] if isinstance(mine, DTensor) else sent)


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


def plain(model: PreTrainedModel, weights: dict[str, Tensor], lora: Any = None) -> tuple[PreTrainedModel, Any]:
    """A model on the CPU like `model` was before it was divided, with `weights`, which are whole; and its adapter.

    Args:
        model: divided.
        weights: of `whole_state`.
        lora: peft's hold on `model`, where it has an adapter; the one that is returned is on the new model.
    """
    kind = type(model).__bases__[1]  # FSDP makes a class of its own, from itself and the model's
    with torch.device("meta"):
        one = kind(model.config)
    base = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    one.load_state_dict(base, assign=True)
    one.tie_weights()
    if isinstance(model, GenerationMixin):  # which one with a reward head is not
        one.generation_config = model.generation_config
    return one, None if lora is None else like(lora, one, weights)


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without a copy: its share of the rows, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int:
    """The number of the first row that this rank holds: FSDP deals rows out as torch.chunk does."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh = tensor.device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def forget_whole(model: torch.nn.Module) -> None:
    """Drop what a forward without gradients left whole of a divided model: its shares have other numbers now."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which the ranks hold shares, whole on each of them; any other as it is. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: PreTrainedModel, *, kept: bool) -> dict[str, Tensor]:
    """The model's state, a tensor at a time whole, then on the CPU where it is `kept`. All ranks must ask."""
    found = {}
    for name, value in model.state_dict().items():
        one = whole(value)
        if kept:
            found[name] = one.cpu()
    return found
