"""What a stored number depends on: the recipes of scores and of encodings. Needs no torch.

Versions of libraries, attention, batch sizes and devices are recorded beside the scores and are no part of a recipe:
they move a log-prob by rounding only.
"""

from pathlib import Path
from typing import Any

from rlhf_data.scoring import identity

# Part of the key of every score: raise it whenever the same ids and weights give other log-probs, or shards hold
# other columns.
NUMERICS = 3
# Part of the key of every stored encoding: raise it whenever the same text, tokenizer and lengths give other ids.
ENCODING = 3
HEAD_DTYPE = "float32"
BACKENDS = ("torch", "vllm")


def numeric(model: dict[str, Any], dtype: str, cache: Path, *, backend: str = "torch") -> dict[str, Any]:
    """The recipe of log-probs, beside the ids they are of.

    Args:
        model: reference {"path", "gguf_file"?, "revision"?, "adapter"?}.
        dtype: "float32", "bfloat16" or "float16", never "auto".
        cache: folder for digests.
        backend: one of BACKENDS; another's kernels are another recipe.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: it must be {' or '.join(BACKENDS)}")
    other = {} if backend == "torch" else {"backend": backend}
    return other | {
        "model_hash": identity.content_hash(model, cache),
        "dtype": dtype,
        "head_dtype": HEAD_DTYPE,
        "code": NUMERICS,
    }


def encoding(
    model: dict[str, Any], template: str, max_length: int, max_prompt_length: int | None, cache: Path
) -> dict[str, Any]:
    """The recipe of token ids, beside the text they are of; arguments as of `encode`."""
    return {
        "tokenizer_hash": identity.tokenizer_hash(model, cache),
        "template": identity.template_text(template),
        "max_length": max_length,
        "max_prompt_length": prompt_limit(max_length, max_prompt_length),
        "code": ENCODING,
    }


def prompt_limit(max_length: int, max_prompt_length: int | None) -> int:
    """The most tokens a prompt may keep."""
    limit = max_length * 3 // 4 if max_prompt_length is None else max_prompt_length
    if not 1 <= limit < max_length:
        raise ValueError(
            f"max_prompt_length is {limit} and max_length {max_length}: prompts need at least 1 token, "
            "completions at least 1 of the rest"
        )
    return limit
