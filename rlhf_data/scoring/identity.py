"""What a model is, without loading it: where its files lie, and a digest of them. Needs no torch.

A reference is {"path", "gguf_file"?, "revision"?, "adapter"?}: a folder or a hub id, one GGUF file of it, and the
folder of a LoRA adapter (adapter_config.json, adapter_model.safetensors, as peft writes them) that belongs to the
model. `path` may be such a folder itself: its base is then the model that its configuration names.
"""

import json
import re
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from rlhf_data import files
from rlhf_data.scoring.adapters import CONFIG, adapter_config, adapter_hash

TOLD = "rlhf_data.json"
_TEMPLATE = "rlhf_data.jinja"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first that is there is what transformers loads
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "*.model",
)


def content_hash(reference: dict[str, Any], cache: Path) -> str:
    """xxh3-128 over a model's weight files and config.json, and over its adapter: equal for equal weights, wherever.

    With an adapter, over its hash too.

    Args:
        reference: see above.
        cache: remembers a file's digest by (path, size, mtime), so only the first call reads gigabytes.
    """
    base, adapter = parts(reference)
    own = _files_hash(model_files(base, find(base)), cache)
    if adapter is None:
        return own
    return xxh3_128_hexdigest(f"{own}:{adapter_hash(adapter, cache)}".encode())


def tokenizer_hash(reference: dict[str, Any], cache: Path) -> str:
    """xxh3-128 over the files that define a tokenizer and its chat template."""
    reference = with_tokenizer(reference)
    folder = find(reference)
    if gguf := reference.get("gguf_file"):
        return _files_hash([folder / gguf], cache)
    found = _tokenizer_files(folder)
    if not found:
        raise ValueError(f"{folder} holds no tokenizer files (tokenizer.json, tokenizer_config.json, …)")
    return _files_hash(found, cache)


def parts(reference: dict[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The model without its adapter, and the adapter's folder; None where there is none.

    Raises:
        ValueError: an adapter that does not say what its base is; a folder that holds both.
    """
    base = {key: value for key, value in reference.items() if key != "adapter"}
    if "adapter" in reference:
        return base, Path(reference["adapter"]).expanduser()
    folder = Path(reference.get("path") or "").expanduser()
    if not reference.get("path") or reference.get("gguf_file") or not (folder / CONFIG).is_file():
        return base, None
    if (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise ValueError(f"{folder} holds a model and an adapter: give the adapter a folder of its own")
    config = adapter_config(folder)
    if not config.get("base_model_name_or_path"):
        raise ValueError(f"{folder / CONFIG} names no base_model_name_or_path: write {{path: BASE, adapter: {folder}}}")
    revision = {"revision": config["revision"]} if config.get("revision") else {}
    return {"path": config["base_model_name_or_path"], **revision}, folder


def with_tokenizer(reference: dict[str, Any]) -> dict[str, Any]:
    """Where a model's tokenizer is: with its adapter where `path` names that and it holds one, else with its base."""
    base, adapter = parts(reference)
    own = adapter is not None and "adapter" not in reference and _tokenizer_files(adapter)
    return {"path": str(adapter)} if own else base


def end_tokens(reference: dict[str, Any]) -> Any:
    """The end tokens that a model's generation_config.json lists, as it does: they decide where its answers end."""
    return (files.read_json(find(parts(reference)[0]) / "generation_config.json") or {}).get("eos_token_id")


def template_text(template: str) -> str:
    """What identifies a template beside the tokenizer: its name, or a file's content."""
    if template in ("chat", "plain"):
        return template
    path = Path(template)
    if not path.is_file():
        raise ValueError(f"template is {template!r}: it must be chat, plain, or the path of a .jinja file")
    return path.read_text()


def told(reference: dict[str, Any]) -> dict[str, Any]:
    """How a model that we trained reads text: template, lengths, condition; empty where its folder does not say."""
    adapter = reference.get("adapter")
    if adapter and (Path(adapter).expanduser() / TOLD).is_file():
        reference = {"path": adapter}
    if not (folder := Path(str(reference.get("path", ""))).expanduser()).is_dir():
        return {}
    said: dict[str, Any] = files.read_json(folder / TOLD) or {}
    beside = folder / str(said.get("template"))
    return said | {"template": str(beside)} if beside.is_file() else said


def tell(folder: Path, said: dict[str, Any]) -> None:
    """Write into a model's folder what `told` reads; a template's file goes with it."""
    template = said["template"]
    if template not in ("chat", "plain"):
        files.write_text(folder / _TEMPLATE, template_text(template))
        said = said | {"template": _TEMPLATE}
    files.write_text(folder / TOLD, json.dumps(said, indent=2))


def find(reference: dict[str, Any]) -> Path:
    """The folder of a model, fetched into the hub's own cache if `path` is a hub id."""
    unknown = set(reference) - {"path", "gguf_file", "revision", "adapter"}
    if unknown or not reference.get("path"):
        raise ValueError(f"a model is {{path, gguf_file?, revision?, adapter?}}, not {reference}")
    folder = Path(reference["path"]).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(reference["path"])):
        raise ValueError(f"no model folder at {reference['path']}: name a folder, or a hub id org/name")
    return _from_hub(str(reference["path"]), reference.get("revision"))


def model_files(reference: dict[str, Any], folder: Path) -> list[Path]:
    """The files that hold a model's weights and configuration.

    Raises:
        ValueError: they are not there; the message says what is.
    """
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


def template_hash(reference: dict[str, Any], template: str, cache: Path) -> str:
    """Digest of all that decides, with the lengths, which tokens a text becomes."""
    return xxh3_128_hexdigest(f"{tokenizer_hash(reference, cache)}:{template_text(template)}".encode())


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()})


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # a local model must not need the network

    patterns = [*_WEIGHTS, "*.json", "*.gguf", *_TOKENIZER]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # network, name, revision and access each raise their own
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"no folder {name} here, and the hub gave no model {name}{at} ({type(error).__name__}): {error}"
        ) from error


def _files_hash(paths: list[Path], cache: Path) -> str:
    found = files.digests(paths, cache / "digests.json")
    return xxh3_128_hexdigest("\n".join(f"{path.name}:{d}" for path, d in zip(paths, found, strict=True)).encode())
