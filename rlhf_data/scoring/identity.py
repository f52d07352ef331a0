"""What a model is, without loading it: where its files lie, and a digest of them. Needs no torch."""

import json
import re
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from rlhf_data import files

TOLD = "rlhf_data.json"
_TEMPLATE = "rlhf_data.jinja"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first that is there is what transformers loads
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
    """xxh3-128 over a model's weight files and config.json: equal for equal weights, wherever they lie.

    Args:
        reference: {"path", "gguf_file"?, "revision"?}.
        cache: remembers a file's digest by (path, size, mtime), so only the first call reads gigabytes.
    """
    return _files_hash(model_files(reference, find(reference)), cache)


def tokenizer_hash(reference: dict[str, Any], cache: Path) -> str:
    """xxh3-128 over the files that define a tokenizer and its chat template."""
    folder = find(reference)
    if gguf := reference.get("gguf_file"):
        return _files_hash([folder / gguf], cache)
    found = sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise ValueError(f"{folder} holds no tokenizer files (tokenizer.json, tokenizer_config.json, …)")
    return _files_hash(found, cache)


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
    unknown = set(reference) - {"path", "gguf_file", "revision"}
    if unknown or not reference.get("path"):
        raise ValueError(f"a model is {{path, gguf_file?, revision?}}, not {reference}")
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
