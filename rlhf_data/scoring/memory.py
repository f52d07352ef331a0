"""Whether a run fits in memory, said before it starts rather than by the kernel's killer."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

_CHUNK_COPIES = 3  # of a chunk of logits: they, their exponentials, the gradient
_CHUNK_ROWS = 256


def preflight(model: PreTrainedModel, token_budget: int, *, training: bool = False) -> dict[str, int]:
    """Bytes that a forward (or, with `training`, an AdamW step) needs on top of what is loaded.

    Activations are an estimate from the model's shape: what a stock decoder layer keeps for its backward pass in
    training, of one layer at a time in scoring.

    Args:
        model: loaded, on the device where it will run.
        token_budget: tokens of a forward.
        training: whether gradients and optimizer state come on top.

    Returns:
        weights (loaded already), gradients, optimizer, activations, head, needed (all but the weights), available.

    Raises:
        ValueError: `needed` exceeds `available`; says what would fit.
    """
    shape = model.config.get_text_config()
    parameters = list(model.parameters())
    element = parameters[0].element_size()
    weights = sum(p.numel() * p.element_size() for p in parameters)
    hidden, inner = shape.hidden_size, getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
    layers = shape.num_hidden_layers if training else 1
    per_token = layers * (14 * hidden + 4 * inner) * element
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    sizes = {
        "weights": weights,
        "gradients": trained if training else 0,
        "optimizer": 2 * trained if training else 0,
        "activations": per_token * token_budget,
        "head": _CHUNK_COPIES * _CHUNK_ROWS * shape.vocab_size * 4,
    }
    fixed = sizes["gradients"] + sizes["optimizer"] + sizes["head"]
    needed, available = fixed + sizes["activations"], available_bytes(model.device)
    if needed > available:
        tokens = (available - fixed) // per_token
        advice = (
            f"a token_budget of {tokens} would fit"
            if tokens >= 64
            else "no token_budget would fit: take a smaller model or a larger machine"
        )
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items() if name != "weights")
        raise ValueError(
            f"{'training' if training else 'scoring'} with {token_budget} tokens a forward needs {_gib(needed)} beside "
            f"the loaded weights ({parts}), and {_gib(available)} are free on {model.device}: {advice}"
        )
    return sizes | {"needed": needed, "available": available}


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
