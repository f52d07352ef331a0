"""Log-probs of completions: the one code that the scorer, the trainer and the evaluation share.

A prompt runs once with all its completions: whole groups are packed into one sequence without padding, a token attends
to its own prompt and its own completion only, and a completion's last token, whose prediction nobody asks for, does
not run at all. Only the rows that predict a completion token meet the output matrix, a chunk at a time, in float32: the
logits of a batch never exist. Models whose attention cannot be packed run in padded batches of equal length instead.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_data.scoring.attention import attention, body_of, form_of, forward_arguments, layers_of
from rlhf_data.scoring.head import Transform, target_logps
from rlhf_data.scoring.packs import Batch, Group, Layout, pack, pad

_EXACT = 1e-3  # nats a token: float32
_ROUNDED, _PLAIN = 10.0, 0.05  # in bfloat16 packs may be so many times as far off as padded batches, or so many nats
_SEEN = 0.02  # nats: of equal shapes the products are equal, but of a mixture's experts, which get other rows


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
    head = model.get_output_embeddings()
    assert head is not None  # a causal language model has one
    transform = _logit_transform(model.config)
    with torch.autocast(hidden.device.type, enabled=False):  # the head is float32 whatever the body runs in
        values = target_logps(hidden, batch.targets, head.weight, head.bias, transform, squares=squares)
    logps = iter(torch.split(values, batch.lengths))
    return [[next(logps) for _ in group.completions] for group in groups]


def hidden_states(model: PreTrainedModel, groups: Sequence[Group], layout: Layout) -> tuple[Tensor, Batch]:
    """What the body says where each completion token is predicted, (targets, width), and the batch that it read."""
    batch = (pack if layout == "packed" else pad)(groups, model.device)
    arguments = batch.forward
    if layout == "packed":
        arguments = {**arguments, **forward_arguments(groups, form_of(model), model.device)}
    with grouped_attention(model, layout):
        ran = body_of(model)(input_ids=batch.input_ids, use_cache=False, **arguments)
    return ran.last_hidden_state.flatten(0, 1)[batch.rows], batch


def grouped_attention(model: PreTrainedModel, layout: Layout) -> AbstractContextManager[None]:
    """The attention of `layout` for a while: a backward pass that runs layers again must find what the forward had."""
    return attention(model, form_of(model) if layout == "packed" else None)


def layout_of(model: PreTrainedModel) -> Layout:
    """How this model's batches are laid out, found by trying: packed if that gives the logits of one sequence alone.

    Raises:
        ValueError: not even padded batches reproduce the model's own logits, so it transforms them in a way that is
            not known here.
    """
    errors, tolerance = {}, _tolerance(model)
    if "packed" in layouts(model.config):
        errors["packed"] = _deviation(model, "packed")
        if errors["packed"] < _EXACT:
            return "packed"
    errors["padded"] = _deviation(model, "padded")
    # What rounding makes of a padded batch says how much of a pack's deviation may be rounding.
    if errors.get("packed", math.inf) < min(tolerance, max(_PLAIN, _ROUNDED * errors["padded"])):
        return "packed"
    if errors["padded"] < tolerance:
        return "padded"
    if math.isinf(errors["padded"]):
        raise ValueError(
            f"{type(model).__name__} gives NaN or ∞ in {model.dtype}: its weights are damaged, or overflow"
        )
    worst = ", ".join(f"{layout} by {error:.3g} nats" for layout, error in errors.items())
    raise ValueError(
        f"{type(model).__name__}: log-probs from its hidden states differ from its own logits ({worst}): "
        "this model family is not supported"
    )


def compile_layers(model: PreTrainedModel, layout: Layout, *, backend: str = "inductor") -> bool:
    """Compile the decoder layers in place, if a model's log-probs then are still its own; False leaves it as it was.

    Worth its half minute on a GPU, where what lies between the matrix products costs as much as they do, and nothing
    on a CPU. Packs then run through FlexAttention, whose kernel skips what no token sees.
    """
    layers = layers_of(model)
    try:
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
        exact = layout == "packed" and bool(layers) and _deviation(model, layout) < _tolerance(model)
    except Exception:  # the compiler's own, of which there are many: it runs uncompiled then
        exact = False
    if not exact:
        for layer in layers:
            layer._compiled_call_impl = None
    return exact


def default_budget(model: PreTrainedModel) -> int:
    """Tokens of a forward that keep the device busy: more saves nothing on a CPU, and a GPU needs more."""
    return 8192 if model.device.type == "cuda" else 2048


def layouts(config: Any) -> tuple[Layout, ...]:
    """The layouts that a model's attention may allow, the faster one first; each is still to be tried."""
    config = config.get_text_config()  # of a model that reads pictures too, what its text part says
    layers = set(getattr(config, "layer_types", None) or ())
    windows = {getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "keep_window_size")}
    return ("packed", "padded") if layers <= {"full_attention"} and windows == {None} else ("padded",)


def _logit_transform(config: Any) -> Transform:
    """What stands between the output matrix and the logits: Cohere and Granite scale, Gemma caps."""
    config = config.get_text_config()
    if scaling := getattr(config, "logits_scaling", None):
        return Transform(1 / scaling)
    return Transform(getattr(config, "logit_scale", None) or 1.0, getattr(config, "final_logit_softcapping", None))


def _tolerance(model: PreTrainedModel) -> float:
    """Nats by which a token's log-prob may differ between two ways to compute it that mean the same."""
    return _EXACT if model.dtype == torch.float32 else 0.5


def _deviation(model: PreTrainedModel, layout: Layout) -> float:
    """The largest difference, in nats, between our log-probs of a few tokens and the model's own; NaN counts as ∞.

    Rounding to bfloat16 may hide that tokens of one group see another. So what stands beside a completion is changed
    too: where that changes its log-probs, packs are ∞ off.
    """
    top = min(model.config.get_text_config().vocab_size, 97)
    prompts = [[i * 7 % top for i in range(1, n)] for n in (3, 6)]
    groups = [Group(prompt, [[5 % top, 3 % top], [2 % top, 7 % top, 1 % top], [4 % top]]) for prompt in prompts]
    changed = [[6 % top, 8 % top], *groups[1].completions[1:]]
    others = [Group([9 % top, 8 % top], groups[0].completions), Group(prompts[1], changed)]
    worst = 0.0
    with torch.no_grad():
        try:
            ours = token_logps(model, groups, layout)
            if layout == "packed":
                beside_others = torch.cat(token_logps(model, others, layout)[1][1:])
                seen = _largest(torch.cat(ours[1][1:]) - beside_others)
                worst = 0.0 if seen < _SEEN else math.inf
        except (TypeError, ValueError, RuntimeError):
            if layout == "padded":
                raise
            return float("inf")  # its layers do not hand `spans` down to the attention
        for group, logps in zip(groups, ours, strict=True):
            for completion, mine in zip(group.completions, logps, strict=True):
                ids = torch.tensor([[*group.prompt, *completion]], device=model.device)
                logits = model(ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].float()
                theirs = logits.log_softmax(-1).gather(1, ids[0, len(group.prompt) :, None]).squeeze(1)
                worst = max(worst, _largest(mine - theirs))
    return worst


def _largest(differences: Tensor) -> float:
    return float(differences.abs().nan_to_num(nan=math.inf, posinf=math.inf).max())
