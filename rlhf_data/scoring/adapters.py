"""A low-rank adapter that belongs to a model reference: what identifies it, and its base with it merged in."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128_hexdigest

from rlhf_data import files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Where the base lay, who wrote the file and for what: none of it changes what the adapter adds.
_NOT_CONTENT = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type"}


def adapter_hash(folder: Path, cache: Path) -> str:
    """xxh3-128 over an adapter's weights and what its configuration says of them.

    Raises:
        ValueError: no adapter lies there.
    """
    if lacking := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is no adapter: it has no {' and no '.join(lacking)}")
    said = adapter_config(folder)
    # peft writes its sets of names in any order.
    content = {
        key: sorted(value) if isinstance(value, list) else value
        for key, value in sorted(said.items())
        if key not in _NOT_CONTENT
    }
    (weights,) = files.digests([folder / WEIGHTS], cache / "digests.json")
    return xxh3_128_hexdigest(f"{weights}:{json.dumps(content, sort_keys=True)}".encode())


def adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says.

    Raises:
        ValueError: it is not there, or damaged.
    """
    said = files.read_json(folder / CONFIG)
    if not isinstance(said, dict):
        raise ValueError(f"{folder} has no readable {CONFIG}: give the folder of an adapter as peft writes it")
    return said


def merged(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """`model` with an adapter added to its weights, in place: it runs as fast as before.

    Raises:
        ValueError: peft is not installed, or the adapter is not of this model.
    """
    peft = library()
    _check_mergeable(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute that was renamed
        try:
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
        except Exception as error:  # a damaged file, other shapes, no such layers: each raises its own
            raise ValueError(f"the adapter {folder} does not load onto {model.name_or_path}: {error}") from error
        own = {name for name in peft.get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora" in name}
        if apart := own ^ {name for name in _tensors(folder) if "lora" in name}:
            raise ValueError(
                f"the adapter {folder} is not of {model.name_or_path}: {len(apart)} of its tensors or layers have no "
                f"counterpart, such as {min(apart)}"
            )
        return adapted.merge_and_unload().requires_grad_(True)


def _check_mergeable(model: "PreTrainedModel", folder: Path) -> None:
    """Refuse what added to the weights is another model than beside them."""
    if adapter_config(folder).get("layer_replication"):
        raise ValueError(f"the adapter {folder} repeats layers (layer_replication), which no merge gives")
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if first is None or last is None or first.weight is not last.weight:
        return
    names = [name for name, module in model.named_modules() if module in (first, last)]
    if adapted := [name for name in names if any(f".{name}.lora" in tensor for tensor in _tensors(folder))]:
        raise ValueError(
            f"the adapter {folder} changes {', '.join(adapted)}, which is one matrix with the other end of "
            f"{model.name_or_path}: merge it yourself into a model whose embeddings are not tied"
        )


def _tensors(folder: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as held:
            return list(held.keys())
    except Exception as error:  # its own kind of error
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def library() -> Any:
    """The package peft.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"adapters need the package peft: pip install 'rlhf_data[train]' ({error})") from error
    return peft
