"""Attention within the groups of a pack: a token sees its prompt and its own completion, and nothing else.

Two forms of the same thing, registered with transformers by name, so that stock models use them: one call a completion
of scaled dot-product attention, the faster one on a CPU, and FlexAttention with a block mask, which compiles into one
kernel on a GPU. Either reads what `forward_arguments` says of the pack from a keyword of the model's forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from rlhf_data.scoring.packs import Group

Form = Literal["rlhf_data_groups", "rlhf_data_blocks"]


class Span(NamedTuple):
    """Where a group stands in its pack, and who sees whom in it."""

    start: int  # of its prompt
    first: int  # of its first completion
    ends: list[int]  # of its completions; a completion begins where the one before it ends
    masks: list[Tensor]  # of each completion but the first, (n, prompt + n): it sees the prompt and what is before it


def form_of(model: PreTrainedModel) -> Form:
    """The faster form for a model as it is: uncompiled, FlexAttention would make a dense matrix of scores."""
    compiled = any(layer._compiled_call_impl is not None for layer in layers_of(model))
    return "rlhf_data_blocks" if compiled else "rlhf_data_groups"


def body_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head; Llama 4 has it where `base_model` does not look."""
    return model.base_model if model.base_model is not model else getattr(model, "model", model)


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers of a stock model; none where it does not name them as most do."""
    return list(getattr(body_of(model), "layers", None) or [])


def forward_arguments(groups: Sequence[Group], form: Form, device: torch.device) -> dict[str, Any]:
    """What the model's forward takes for the attention to know the pack of these groups."""
    spans, at = [], 0
    for group in groups:
        first = end = at + len(group.prompt)
        ends = [end := end + len(completion) - 1 for completion in group.completions]
        others = pairwise(ends) if form == "rlhf_data_groups" else ()
        spans.append(Span(at, first, ends, [_after(first - at, end - begin, device) for begin, end in others]))
        at = end
    return {"spans": spans} if form == "rlhf_data_groups" else {"blocks": _blocks(spans, at, device)}


@contextmanager
def attention(model: PreTrainedModel, form: Form | None) -> Iterator[None]:
    """Another attention function for a while; None keeps the model's own."""
    own = model.config._attn_implementation
    if own is None or form is None or own == form:
        yield
        return
    model.set_attn_implementation(form)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _attend_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: list[Span],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query (1, heads, tokens, d), result (1, tokens, heads, d).

    A prompt and its first completion are plain causal attention, which needs no mask; each other completion meets the
    prompt's keys and its own.
    """
    grouped = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    parts = []
    for start, first, ends, masks in spans:
        own = slice(start, ends[0])
        q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
        parts.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped))
        for (begin, end), mask in zip(pairwise(ends), masks, strict=True):
            if begin == end:  # a completion of one token, which the prompt's end predicts
                continue
            k, v = (torch.cat([of[:, :, start:first], of[:, :, begin:end]], dim=2) for of in (key, value))
            q = query[:, :, begin:end]
            parts.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **grouped))
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


def _after(n_prompt: int, n: int, device: torch.device) -> Tensor:
    """(n, n_prompt + n): the tokens of a completion see the whole prompt and what stands before them."""
    return torch.ones((n, n_prompt + n), dtype=torch.bool, device=device).tril_(n_prompt)


def _attend_blocks(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: BlockMask,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `_attend_groups` gives; where the layers are compiled, one kernel that skips the blocks nobody sees."""
    gqa = query.shape[1] != key.shape[1]
    out = flex_attention(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=gqa)
    assert isinstance(out, Tensor)  # it returns more only where more is asked for
    return out.transpose(1, 2).contiguous(), None


def _blocks(spans: list[Span], tokens: int, device: torch.device) -> BlockMask:
    group = torch.zeros(tokens, dtype=torch.int32)
    completion = torch.zeros(tokens, dtype=torch.int32)  # 0 in a prompt
    for number, (start, first, ends, _) in enumerate(spans):
        group[start : ends[-1]] = number
        for which, (begin, end) in enumerate(pairwise([first, *ends]), start=1):
            completion[begin:end] = which
    group, completion = group.to(device), completion.to(device)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        related = (completion[k] == 0) | (completion[k] == completion[q])
        return (group[q] == group[k]) & related & (q >= k)

    return create_block_mask(sees, None, None, tokens, tokens, device=str(device))


# No mask function goes with them: transformers then builds no mask, and the keyword says everything.
AttentionInterface.register("rlhf_data_groups", _attend_groups)
AttentionInterface.register("rlhf_data_blocks", _attend_blocks)
