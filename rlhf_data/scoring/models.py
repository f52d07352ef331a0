"""Models and tokenizers by reference, loaded.

A reference is a dict {"path", "gguf_file"?, "revision"?, "adapter"?}; see `identity`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_data.files import whole_folder
from rlhf_data.scoring.adapters import merged
from rlhf_data.scoring.allocator import keep_freed
from rlhf_data.scoring.identity import content_hash, find, model_files, parts, with_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    reference: dict[str, Any],
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_length: int | None = None,
    cache: Path,
    read: Callable[..., PreTrainedModel] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in eval mode: no dropout in any pass of ours.

    A GGUF file is dequantised once and kept as a plain model under `cache`; loading it the first time takes minutes
    per billion parameters. An adapter is added to its base's weights in float32.

    Args:
        reference: see `identity`.
        dtype: "auto" (see `dtype_name`), "float32", "bfloat16" or "float16".
        device: "auto" takes the first CUDA device, else the CPU.
        max_length: most tokens that it will read at once.
        cache: a folder for digests and dequantised models.
        read: (folder, dtype=…, local_files_only=…) → model, for one with another head.

    On a CPU this process keeps what it frees from then on, see `allocator`.

    Raises:
        ValueError: no such model, file or dtype, fewer positions than `max_length`, or other ones (longrope).
    """
    device = device_name(device)
    base, adapter = parts(reference)
    folder, precision = plain_folder(base, cache), _DTYPES[dtype_name(dtype, device)]
    first = precision if adapter is None else torch.float32
    try:
        model = (read or AutoModelForCausalLM.from_pretrained)(folder, dtype=first, local_files_only=True)
    except Exception as error:  # a damaged file, an unknown architecture, missing code: each raises its own
        kind = "a causal language model" if read is None else "a reward model"
        raise ValueError(f"{folder} does not load as {kind}: {error}") from error
    if adapter is not None:
        model = merged(model, adapter).to(precision)  # pyright: ignore[reportArgumentType]: as below
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length is not None and max_length > positions:
        raise ValueError(
            f"max_length is {max_length}, but {reference['path']} has {positions} positions: "
            f"set max_length: {positions}, or less"
        )
    steady = _steady_positions(model.config.get_text_config())
    if steady is not None and max_length is not None and max_length > steady:
        raise ValueError(
            f"max_length is {max_length}, but {reference['path']} reads a sequence of more than {steady} tokens with "
            f"other rotary frequencies, and with it all others of its batch: set max_length: {steady}, or less"
        )
    if device == "cpu":
        keep_freed()
    model.to(device)  # pyright: ignore[reportArgumentType]: transformers wraps `to` in a decorator without types
    return model.eval(), load_tokenizer(reference, cache=cache)


def _steady_positions(config: Any) -> int | None:
    """The tokens up to which what a sequence gives does not depend on how long the others of its batch are."""
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(one for one in told.values() if isinstance(one, dict))]
    if all(one.get("rope_type") != "longrope" for one in kinds):
        return None
    original = [one.get("original_max_position_embeddings") for one in (*kinds, vars(config))]
    return min((one for one in original if one), default=config.max_position_embeddings)


def load_tokenizer(reference: dict[str, Any], *, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone; of a GGUF file, the one written beside the dequantised model."""
    place = with_tokenizer(reference)
    folder = plain_folder(place, cache) if place == parts(place)[0] else Path(place["path"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file, an unknown class: each raises its own
        raise ValueError(f"{reference['path']} has no tokenizer that loads: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {reference['path']} has no end token: set eos_token in its config")
    return tokenizer


def device_name(device: str) -> str:
    """The device that "auto" means on this machine."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_name(dtype: str, device: str) -> str:
    """The dtype that "auto" means: float32 on a CPU, where bfloat16 is emulated and slow; bfloat16 on a GPU."""
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be auto, {', '.join(_DTYPES)}")
    return dtype


def plain_folder(reference: dict[str, Any], cache: Path) -> Path:
    """The folder of a reference's weights, of a GGUF file its dequantised copy, which is made if it is not there."""
    folder = find(reference)
    model_files(reference, folder)
    if not reference.get("gguf_file"):
        return folder
    base = {key: value for key, value in reference.items() if key != "adapter"}
    plain = cache / "models" / content_hash(base, cache)
    if not plain.is_dir():
        with whole_folder(plain) as beside:
            _dequantise(folder, reference["gguf_file"], beside)
    return plain


def _dequantise(folder: Path, gguf: str, out: Path) -> None:
    # transformers refuses to save what it read from a GGUF ("quantized"): the same weights go into a fresh model.
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    except ImportError as error:
        raise ValueError(f"reading {gguf} needs the gguf package: pip install 'rlhf_data[train]' ({error})") from error
    config = AutoConfig.from_pretrained(folder, gguf_file=gguf)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(out)
