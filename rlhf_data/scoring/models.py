"""Models and tokenizers by reference: found, hashed, loaded.

A reference is a dict {"path", "gguf_file"?, "revision"?}: a local folder or a hub id, optionally one GGUF file in it.
"""

import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from xxhash import xxh3_128, xxh3_128_hexdigest

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first that is there is what transformers loads
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "spiece*",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    reference: dict[str, Any], *, dtype: str = "auto", device: str = "auto", cache: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in eval mode: no dropout in any pass of ours.

    A GGUF file is dequantised once and kept as a plain model under `cache`; loading it the first time takes minutes
    per billion parameters.

    Args:
        reference: {"path", "gguf_file"?, "revision"?}.
        dtype: "auto" (see `dtype_name`), "float32", "bfloat16" or "float16".
        device: "auto" takes the first CUDA device, else the CPU.
        cache: a folder for digests and dequantised models.

    Raises:
        ValueError: no such model, file or dtype.
    """
    device = device_name(device)
    model = AutoModelForCausalLM.from_pretrained(
        _plain_folder(reference, cache), dtype=_DTYPES[dtype_name(dtype, device)], local_files_only=True
    )
    model.to(device)  # pyright: ignore[reportArgumentType]: transformers wraps `to` in a decorator without types
    return model.eval(), load_tokenizer(reference, cache=cache)


def load_tokenizer(reference: dict[str, Any], *, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone; of a GGUF file, the one written beside the dequantised model."""
    folder = _plain_folder(reference, cache)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except OSError as error:
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


def content_hash(reference: dict[str, Any], cache: Path) -> str:
    """xxh3-128 over a model's weight files and config.json: equal for equal weights, wherever they lie.

    A file's digest is remembered by (path, size, mtime), so only the first call reads gigabytes.
    """
    return _files_hash(_model_files(reference, find(reference)), cache)


def tokenizer_hash(reference: dict[str, Any], cache: Path) -> str:
    """xxh3-128 over the files that define a tokenizer and its chat template."""
    folder = find(reference)
    if gguf := reference.get("gguf_file"):
        return _files_hash([folder / gguf], cache)
    files = sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()})
    if not files:
        raise ValueError(f"{folder} holds no tokenizer files (tokenizer.json, tokenizer_config.json, …)")
    return _files_hash(files, cache)


def find(reference: dict[str, Any]) -> Path:
    """The folder of a model, fetched into the hub's own cache if `path` is a hub id."""
    unknown = set(reference) - {"path", "gguf_file", "revision"}
    if unknown or not reference.get("path"):
        raise ValueError(f"a model is {{path, gguf_file?, revision?}}, not {reference}")
    folder = Path(reference["path"]).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(reference["path"])):
        raise ValueError(
            f"no model folder at {reference['path']}: name a folder with config.json, or a hub id org/name"
        )
    return _from_hub(str(reference["path"]), reference.get("revision"))


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # comes with transformers; a local model must not need the network

    patterns = [*_WEIGHTS, "*.json", "*.gguf", *_TOKENIZER]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # network, name, revision and access each raise their own
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"no folder {name} here, and the hub gave no model {name}{at} ({type(error).__name__}): {error}"
        ) from error


def _model_files(reference: dict[str, Any], folder: Path) -> list[Path]:
    if gguf := reference.get("gguf_file"):
        if not (folder / gguf).is_file():
            there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
            raise ValueError(f"no file {gguf} in {folder}; its GGUF files: {there}")
        return [folder / gguf]
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
        raise ValueError(f"{folder} has no config.json" + (f": set gguf_file to one of {there}" if there else ""))
    for pattern in _WEIGHTS:
        if weights := sorted(folder.glob(pattern)):
            return [*weights, folder / "config.json"]
    raise ValueError(f"{folder} has a config.json but no weights ({' or '.join(_WEIGHTS)})")


def _plain_folder(reference: dict[str, Any], cache: Path) -> Path:
    folder = find(reference)
    _model_files(reference, folder)
    if not reference.get("gguf_file"):
        return folder
    plain = cache / "models" / content_hash(reference, cache)
    if not plain.is_dir():
        write_folder(plain, lambda beside: _dequantise(folder, reference["gguf_file"], beside))
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


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then rename it into place: nobody meets half of it."""
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    beside.mkdir(parents=True)
    try:
        write(beside)
        if not folder.is_dir():  # else a second writer was faster: its folder has the same content
            beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    beside.write_text(text)
    beside.replace(path)


def _files_hash(files: list[Path], cache: Path) -> str:
    known_at = cache / "digests.json"
    known: dict[str, str] = json.loads(known_at.read_text()) if known_at.is_file() else {}
    fresh = {key: _file_digest(path) for path in files if (key := _file_key(path)) not in known}
    if fresh:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(known_at, json.dumps(known | fresh, indent=0))
    digests = known | fresh
    return xxh3_128_hexdigest("\n".join(f"{path.name}:{digests[_file_key(path)]}" for path in files).encode())


def _file_key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _file_digest(path: Path) -> str:
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
