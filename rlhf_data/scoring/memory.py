"""Whether a run fits in memory, said before it starts rather than by the kernel's killer."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf_data.scoring.head import tile_of

_TILE_COPIES = 3  # of a tile of logits: they, their exponentials, the gradient
_LEAST_TOKENS = 64  # a smaller budget is no advice


class Shape(NamedTuple):
    """What memory depends on: parameters in all and those that are trained, and the sizes of layers and vocabulary.

    `tile` is how many logits are alive at a time, see `head.tile_of`.
    """

    parameters: int
    trained: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    tile: int = math.prod(tile_of(torch.device("cuda")))


def shape_of(model: PreTrainedModel) -> Shape:
    """A model's shape; its parameters are counted whole where the ranks hold shares."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    parameters = list(model.parameters())
    return Shape(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=inner,
        vocabulary=config.vocab_size,
        tile=math.prod(tile_of(model.device)),
    )


def scoring_bytes(shape: Shape, token_budget: int, element: int) -> dict[str, int]:
    """Bytes of a forward without gradients, of a model with `element` bytes a parameter."""
    return {
        "weights": shape.parameters * element,
        "activations": token_budget * _layer_elements(shape) * element,
        "head": _head_bytes(shape),
    }


def training_bytes(
    shape: Shape,
    token_budget: int,
    *,
    dtype: torch.dtype = torch.float32,
    ranks: int = 1,
    gradient_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes on one device of an AdamW step with float32 parameters.

    Args:
        shape: of the model.
        token_budget: tokens of a forward.
        dtype: of the matrix products: bfloat16 halves what layers keep, and keeps a rounded copy of the weights.
        ranks: how many hold a share of parameters, gradients and optimizer state each; 1 where nothing is sharded.
        gradient_checkpointing: whether a layer keeps its input alone.

    Returns:
        weights, gradients, optimizer, copies (rounded weights; of shares, the layers that are whole at a time),
        activations and head.
    """
    rounded = dtype != torch.float32
    outside = shape.vocabulary * shape.hidden  # FSDP keeps what is outside the layers whole from forward to backward
    layer = max(0, shape.parameters - outside) // shape.layers
    if ranks > 1:
        # A layer and the next one on its way, and a gradient on its way out.
        copies = 3 * layer * (2 if rounded else 4) + 2 * outside * 4
    else:
        copies = shape.parameters * 2 if rounded else 0
    elements = _layer_elements(shape)
    # The residual stream and the norms stay float32 whatever the products are in: 6 of the 14 of `_layer_elements`.
    kept = elements * 2 + 12 * shape.hidden if rounded else elements * 4
    per_token = shape.layers * shape.hidden * 4 + kept if gradient_checkpointing else shape.layers * kept
    # The gradient of the output matrix is formed beside the one that it is added to.
    return {
        "weights": shape.parameters * 4 // ranks,
        "gradients": shape.trained * 4 // ranks,
        "optimizer": 2 * shape.trained * 4 // ranks,
        "copies": copies,
        "activations": per_token * token_budget,
        "head": _head_bytes(shape) + (2 * outside * 4 if shape.trained == shape.parameters else 0),
    }


def preflight(
    model: PreTrainedModel,
    token_budget: int,
    *,
    training: bool = False,
    dtype: torch.dtype = torch.float32,
    ranks: int = 1,
    gradient_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes that a forward (or, with `training`, an AdamW step) needs on top of what is loaded.

    Activations are an estimate from the model's shape: what a stock decoder layer keeps for its backward pass in
    training, of one layer at a time in scoring.

    Args:
        model: loaded, on the device where it will run.
        token_budget: tokens of a forward.
        training: whether gradients and optimizer state come on top.
        dtype: see `training_bytes`; this and what follows are of training alone.
        ranks: see `training_bytes`.
        gradient_checkpointing: see `training_bytes`.

    Returns:
        What `scoring_bytes` or `training_bytes` says, needed (all but the weights, which are loaded) and available.

    Raises:
        ValueError: `needed` exceeds `available`; says what would fit.
    """
    shape, available = shape_of(model), available_bytes(model.device)
    element = next(model.parameters()).element_size()

    def sizes_of(tokens: int, ranks: int = ranks, checkpointing: bool = gradient_checkpointing) -> dict[str, int]:
        if not training:
            return scoring_bytes(shape, tokens, element)
        return training_bytes(shape, tokens, dtype=dtype, ranks=ranks, gradient_checkpointing=checkpointing)

    sizes = sizes_of(token_budget)
    needed = _needed(sizes)
    if needed > available:
        advice = []
        fixed = needed - sizes["activations"]
        if (tokens := (available - fixed) * token_budget // sizes["activations"]) >= _LEAST_TOKENS:
            advice.append(f"a token_budget of {tokens} would fit")
        if training and not gradient_checkpointing:
            spared = sizes_of(token_budget, checkpointing=True)
            if _needed(spared) <= available:
                advice.append(f"gradient_checkpointing: true would fit ({_gib(_needed(spared))})")
        if training:
            held = available + sizes["weights"]
            more = (n for n in (2, 4, 8, 16, 32, 64, 128, 256) if n > ranks)
            if (n := next((n for n in more if sum(sizes_of(token_budget, n).values()) <= held), None)) is not None:
                advice.append(f"shard: true over {n} such devices would fit")
            if shape.trained == shape.parameters:
                one_percent = shape._replace(trained=shape.parameters // 100)
                few = training_bytes(
                    one_percent, token_budget, dtype=dtype, ranks=ranks, gradient_checkpointing=gradient_checkpointing
                )
                if _needed(few) <= available:
                    advice.append(f"training an adapter (lora) would fit ({_gib(_needed(few))})")
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items() if name != "weights" and size)
        raise ValueError(
            f"{'training' if training else 'scoring'} with {token_budget} tokens a forward needs {_gib(needed)} beside "
            f"the loaded weights ({parts}), and {_gib(available)} are free on {model.device}: "
            + ("; ".join(advice) or "no token_budget would fit: take a smaller model or a larger machine")
        )
    return sizes | {"needed": needed, "available": available}


def _needed(sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if name != "weights")


def _layer_elements(shape: Shape) -> int:
    """Numbers a token that a stock decoder layer keeps for its backward pass."""
    return 14 * shape.hidden + 4 * shape.inner


def _head_bytes(shape: Shape) -> int:
    return _TILE_COPIES * shape.tile * 4


def in_words(sizes: dict[str, int]) -> str:
    """What `preflight` found, as a sentence."""
    return (
        f"memory: {_gib(sizes['weights'])} of weights and {_gib(sizes['needed'])} to work with; "
        f"{_gib(sizes['available'])} are free"
    )


def available_bytes(device: torch.device) -> int:
    """Bytes free on a device; on a CPU what the kernel and the control group still grant."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([kilobyte * 1024 for kilobyte in kilobytes] + _group_limit() or [1 << 62])


def _group_limit() -> list[int]:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]


def _gib(size: Any) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
