"""Sampling completions from a model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from xxhash import xxh3_64_intdigest

from rlhf_data.scoring.encode import Message, encode_prompts
from rlhf_data.scoring.progress import bar


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    template: str = "chat",
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 768,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> list[list[str]]:
    """`n` completions of each prompt, as text without special tokens, in the order of `prompts`.

    The same arguments give the same texts: each batch draws from a seed of its own, and the caller's random state is
    left as it was.

    Args:
        model: from `models.load`.
        tokenizer: the model's.
        prompts: messages, one list a prompt.
        template: see `encode`; the one that the model was trained with.
        n: completions a prompt; more than one needs a temperature > 0 to differ.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution, nothing cut off.
        max_new_tokens: most tokens of a completion.
        max_prompt_length: a longer prompt loses its oldest tokens.
        batch_size: sequences of a batch.
        seed: of the sampling.
        progress: whether a bar on stderr counts prompts.

    Raises:
        ValueError: a prompt that `encode` refuses, or a negative temperature.
    """
    if not temperature >= 0 or n < 1:
        raise ValueError(f"temperature is {temperature} and n {n}: they must be >= 0 and >= 1")
    ids = encode_prompts(tokenizer, prompts, template=template, max_prompt_length=max_prompt_length)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # equal lengths together: little padding
    step = max(1, batch_size // n)
    texts: list[list[str]] = [[] for _ in ids]
    shown = bar("generate", "prompts", total=len(order), shown=progress)
    for start in range(0, len(order), step):
        picked = order[start : start + step]
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(xxh3_64_intdigest(f"generate:{seed}:{start}".encode()))
            written = _batch(model, tokenizer, [ids[i] for i in picked], n, temperature, max_new_tokens)
        decoded = tokenizer.batch_decode(written, skip_special_tokens=True)
        for row, i in enumerate(picked):
            texts[i] = decoded[row * n : (row + 1) * n]
        shown.update(len(picked))
    shown.close()
    return texts


@torch.inference_mode()
def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    n: int,
    temperature: float,
    max_new_tokens: int,
) -> torch.Tensor:
    """Token ids written after each prompt, `n` rows a prompt, (len(prompts) * n, tokens)."""
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all go on from the same place
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    own = model.generation_config
    listed: Any = own.eos_token_id if own else None
    ends: list[Any] = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed] if listed else [])]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(set(ends)),
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    # Set aside: its own may hold top-k, top-p or penalties, which `generate` mixes into whatever it is given.
    model.generation_config = config
    try:
        written = model.generate(  # pyright: ignore[reportCallIssue]: transformers types generate as a Module
            ids.repeat_interleave(n, dim=0).to(model.device),
            attention_mask=mask.repeat_interleave(n, dim=0).to(model.device),
        )
    finally:
        model.generation_config = own
    return written[:, width:]
