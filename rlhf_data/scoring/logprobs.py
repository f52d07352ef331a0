"""Log-probs of completions: the one code that the scorer, the trainer and the evaluation share.

A prompt runs once with all its completions: whole groups are packed into one sequence without padding, a token attends
to its own prompt and its own completion only, and a completion's last token, whose prediction nobody asks for, does
not run at all. Only the rows that predict a completion token meet the output matrix, a chunk at a time, in float32: the
logits of a batch never exist. Models whose attention cannot be packed run in padded batches of equal length instead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from rlhf_data.scoring.packs import Batch, Group, Layout, pack, pad

# Part of the key of every score: raise it whenever the same ids and weights give other log-probs.
NUMERICS = 1
_ATTENTION = "rlhf_data_groups"
_CHUNK_ROWS = 256  # rows of logits alive at a time: 50 MB in float32 for a vocabulary of 49,152


def token_logps(model: PreTrainedModel, groups: Sequence[Group], layout: Layout) -> list[list[Tensor]]:
    """Log-probs of every completion token, in nats, float32: for each group, one (n_tokens,) a completion.

    One forward; `plan` makes groups that fit. Differentiable where gradients are enabled: logits are then formed
    again in the backward pass, not kept.
    """
    return [[logps[:, 0] for logps in group] for group in _measure(model, groups, layout, squares=False)]


def token_logps_and_squares(
    model: PreTrainedModel, groups: Sequence[Group], layout: Layout
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """What `token_logps` gives, and log Σ p² over the vocabulary where each token stands, in nats, a constant."""
    both = _measure(model, groups, layout, squares=True)
    return tuple([[values[:, at] for values in group] for group in both] for at in (0, 1))  # type: ignore[return-value]


def _measure(model: PreTrainedModel, groups: Sequence[Group], layout: Layout, *, squares: bool) -> list[list[Tensor]]:
    """For each completion (n_tokens, 1), or (n_tokens, 2) with `squares`: log-probs, and log Σ p²."""
    hidden, batch = hidden_states(model, groups, layout)
    logps = iter(torch.split(_target_logps(model, hidden, batch.targets, squares=squares), batch.lengths))
    return [[next(logps) for _ in group.completions] for group in groups]


def hidden_states(model: PreTrainedModel, groups: Sequence[Group], layout: Layout) -> tuple[Tensor, Batch]:
    """What the body says where each completion token is predicted, (targets, width), and the batch that it read."""
    batch = (pack if layout == "packed" else pad)(groups, model.device)
    with _attention(model, _ATTENTION if layout == "packed" else None):
        body = model.base_model(input_ids=batch.input_ids, use_cache=False, **batch.forward)
    return body.last_hidden_state.flatten(0, 1)[batch.rows], batch


def layout_of(model: PreTrainedModel) -> Layout:
    """How this model's batches are laid out, found by trying: packed if that gives the logits of one sequence alone.

    Raises:
        ValueError: not even padded batches reproduce the model's own logits, so it transforms them in a way that is
            not known here.
    """
    errors = {}
    for layout in layouts(model.config):
        errors[layout] = _deviation(model, layout)
        if errors[layout] < (1e-3 if model.dtype == torch.float32 else 0.5):
            return layout
    worst = ", ".join(f"{layout} by {error:.3g} nats" for layout, error in errors.items())
    raise ValueError(
        f"{type(model).__name__}: log-probs from its hidden states differ from its own logits ({worst}): "
        "this model family is not supported"
    )


def default_budget(model: PreTrainedModel) -> int:
    """Tokens of a forward that keep the device busy: more saves nothing on a CPU, and a GPU needs more."""
    return 8192 if model.device.type == "cuda" else 2048


def _attend_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: list[tuple[int, int, int, Tensor | None]],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a pack; query (1, heads, tokens, d), result (1, tokens, heads, d).

    A prompt and its first completion are plain causal attention, which needs no mask; the group's other completions
    follow with one.
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    parts = []
    for start, split, end, mask in spans:
        first = slice(start, split)
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, first], key[:, :, first], value[:, :, first], is_causal=True, scale=scaling
            )
        )
        if mask is not None:
            whole = slice(start, end)
            parts.append(
                functional.scaled_dot_product_attention(
                    query[:, :, split:end], key[:, :, whole], value[:, :, whole], attn_mask=mask, scale=scaling
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2), None


# No mask function goes with it: transformers then builds no mask, and the spans say everything.
AttentionInterface.register(_ATTENTION, _attend_groups)


@contextmanager
def _attention(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Another attention function for a while; None keeps the model's own."""
    own = model.config._attn_implementation
    if own is None or name is None:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def layouts(config: Any) -> tuple[Layout, ...]:
    """The layouts that a model's attention may allow, the faster one first; each is still to be tried."""
    layers = set(config.layer_types or ()) if hasattr(config, "layer_types") else set()
    everything = layers <= {"full_attention"} and getattr(config, "sliding_window", None) is None
    return ("packed", "padded") if everything else ("padded",)


def _target_logps(model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, squares: bool) -> Tensor:
    """Log-probs of `targets` (m,) from `hidden` (m, d), a chunk of rows at a time; (m, 1), or (m, 2) with log Σ p²."""
    head = model.get_output_embeddings()
    assert head is not None  # a causal language model has one
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    scale, cap = _logit_transform(model.config)

    def chunk_logps(rows: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        logits = functional.linear(rows.float(), weight, bias) * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        # gather − logsumexp: 40 times closer to float64 than log_softmax over 49,152 entries
        logps = logits.gather(1, wanted[:, None]) - logits.logsumexp(dim=1, keepdim=True)
        if not squares:
            return logps
        fixed = logits.detach()
        log_p2 = (2 * fixed).logsumexp(dim=1, keepdim=True) - 2 * fixed.logsumexp(dim=1, keepdim=True)
        return torch.cat([logps, log_p2], dim=1)

    chunks = zip(hidden.split(_CHUNK_ROWS), targets.split(_CHUNK_ROWS), strict=True)
    if torch.is_grad_enabled():
        logps = [
            checkpoint(chunk_logps, rows, wanted, weight, use_reentrant=False, preserve_rng_state=False)
            for rows, wanted in chunks
        ]
    else:
        logps = [chunk_logps(rows, wanted, weight) for rows, wanted in chunks]
    return torch.cat(logps)  # pyright: ignore[reportCallIssue, reportArgumentType]: checkpoint has no types


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """(factor, soft cap) between the output matrix and the logits: Cohere and Granite scale, Gemma caps."""
    if scaling := getattr(config, "logits_scaling", None):
        return 1 / scaling, None
    return getattr(config, "logit_scale", None) or 1.0, getattr(config, "final_logit_softcapping", None)


def _deviation(model: PreTrainedModel, layout: Layout) -> float:
    """The largest difference, in nats, between our log-probs of a few tokens and the model's own."""
    top = min(model.config.get_text_config().vocab_size, 97)
    prompts = [[i * 7 % top for i in range(1, n)] for n in (3, 6)]
    groups = [Group(prompt, [[5 % top, 3 % top], [2 % top, 7 % top, 1 % top], [4 % top]]) for prompt in prompts]
    worst = 0.0
    with torch.no_grad():
        try:
            ours = token_logps(model, groups, layout)
        except (TypeError, ValueError, RuntimeError):
            if layout == "padded":
                raise
            return float("inf")  # its layers do not hand `spans` down to the attention
        for group, logps in zip(groups, ours, strict=True):
            for completion, mine in zip(group.completions, logps, strict=True):
                ids = torch.tensor([[*group.prompt, *completion]], device=model.device)
                logits = model(ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].float()
                theirs = logits.log_softmax(-1).gather(1, ids[0, len(group.prompt) :, None]).squeeze(1)
                worst = max(worst, float((mine - theirs).abs().max()))
    return worst
