"""Low-rank adapters (LoRA): a policy whose base stays as it is, and is its reference.

W x + (α / r) · B A x: A (r, inputs) starts at random and B (outputs, r) at 0, so the policy starts as its base to the
last bit. Layers are replaced inside the model, which stays what it was: its body, its output matrix and its attention
are found where they were, and the same code measures its log-probs.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_data.scoring.adapters import CONFIG, WEIGHTS, library
from rlhf_data.scoring.identity import parts

LORA: dict[str, Any] = {"r": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"}  # where nothing is said
_NAME = "default"  # peft's own name for the only adapter


class _GradientDropout(nn.Module):
    """Dropout of the passes that learn; a pass without gradients, of a gate or a reference, sees the whole adapter."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.dropout(values, self.share, training=torch.is_grad_enabled())


def check_adapter(lora: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """ValueError unless an adapter as `lora` says can be trained on the model of that reference."""
    if unknown := lora.keys() - LORA.keys():
        raise ValueError(f"lora has no {', '.join(sorted(unknown))}; it has {', '.join(LORA)}")
    said = {**LORA, **lora}
    if not (said["r"] >= 1 and 0 < said["alpha"] < math.inf and 0 <= said["dropout"] < 1):
        values = f"r is {said['r']}, alpha {said['alpha']}, dropout {said['dropout']}"
        raise ValueError(f"lora: {values}: they must be >= 1, > 0, and in [0, 1)")
    if said["targets"] != "all-linear" and (isinstance(said["targets"], str) or not said["targets"]):
        raise ValueError(
            f"lora: targets is {said['targets']!r}: write all-linear, or a list of the names of linear layers"
        )
    if parts(dict(model))[1] is not None:
        raise ValueError(
            "lora: the model has an adapter already, and one on top of it could not be loaded alone: "
            "start from a model with that adapter merged, such as {run: NAME}"
        )


def attach(
    model: PreTrainedModel,
    *,
    r: int = LORA["r"],
    alpha: float = LORA["alpha"],
    dropout: float = LORA["dropout"],
    targets: str | Sequence[str] = LORA["targets"],
    seed: int = 0,
) -> Any:
    """Put an adapter into `model`, in place, and freeze everything else.

    Args:
        model: loaded; its own parameters need no gradient from here on.
        r: rank, at least 1.
        alpha: what the adapter adds counts alpha / r.
        dropout: share of an adapter's inputs that a learning pass leaves out, in [0, 1).
        targets: "all-linear", all linear layers but the output matrix, or the names of some, such as q_proj.
        seed: of the initial A, drawn on the CPU whatever the device.

    Returns:
        peft's LoraModel around `model`: what `save` and `merge` take.

    Raises:
        ValueError: peft is not installed, or a target that is no linear layer of the body.
    """
    peft = library()
    _check_targets(model, targets)
    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore", UserWarning)  # it says how it reads GPT-2's transposed layers
        lora = peft.LoraModel(model, config, _NAME)
    layers: list[Any] = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    for layer in layers:
        if dropout:
            layer.lora_dropout[_NAME] = _GradientDropout(dropout)
        for part in (layer.lora_A[_NAME], layer.lora_B[_NAME]):
            part.float()  # small updates vanish in bfloat16, whatever the base is in
    model.eval()
    return lora


def save(lora: Any, folder: Path) -> None:
    """Write an adapter as peft does, the same bytes for the same weights."""
    peft, config = library(), lora.peft_config[_NAME]
    weights = peft.get_peft_model_state_dict(lora, adapter_name=_NAME, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.{name}": weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    config.target_modules = sorted(config.target_modules)  # a set's order changes from one process to the next
    config.inference_mode = True
    config.save_pretrained(str(folder))
    assert (folder / CONFIG).is_file()


def like(lora: Any, model: PreTrainedModel, weights: Mapping[str, Tensor]) -> Any:
    """An adapter on `model` as `lora` is one on another of its kind, with those of `weights` that are an adapter's."""
    said = lora.peft_config[_NAME]
    targets = sorted(said.target_modules)
    one = attach(model, r=said.r, alpha=said.lora_alpha, dropout=said.lora_dropout, targets=targets)
    model.load_state_dict({name: tensor for name, tensor in weights.items() if ".lora_" in name}, strict=False)
    return one


def merge(lora: Any) -> PreTrainedModel:
    """The model with the adapter added to its weights, in place: a plain model again."""
    return lora.merge_and_unload(safe_merge=True)


def _check_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> None:
    if isinstance(targets, str):
        return
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    head = model.get_output_embeddings()
    body = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
    for target in targets:
        named = [module for name, module in linear.items() if name == target or name.endswith(f".{target}")]
        if not named:
            raise ValueError(f"lora: no linear layer is named {target!r}; {model.name_or_path} has {', '.join(body)}")
        if any(module is head for module in named):
            # Log-probs are formed from the output matrix itself, chunk by chunk, so an adapter on it would not run.
            raise ValueError(
                f"lora: {target} is the output matrix, which takes no adapter; there are {', '.join(body)}"
            )
