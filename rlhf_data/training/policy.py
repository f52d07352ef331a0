"""The model to be trained: loaded, laid out, and made to fit."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_data import rules
from rlhf_data.scoring import models
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.packs import Layout
from rlhf_data.scoring.progress import say
from rlhf_data.scoring.rewards import layout_of_scores, load_reward_model
from rlhf_data.training.adapters import attach
from rlhf_data.training.ranks import Ranks, agreed, by_first
from rlhf_data.training.settings import Settings
from rlhf_data.training.sharding import deal, hollow, shard, tensors
from rlhf_data.training.step import Policy


def prepare(
    settings: Settings, ranks: Ranks, device: str, cache: Path, progress: bool
) -> tuple[Policy, PreTrainedTokenizerBase, dict[str, int]]:
    """The policy as the settings want it, its tokenizer, and what `preflight` says of the memory it takes.

    Raises:
        ValueError: it does not load, does not fit, or does not know how to do what it is asked.
    """
    sharded = settings.shard and ranks.world > 1
    # What will be divided is loaded on the CPU of rank 0, which deals out the shares.
    where = {"device": "cpu" if sharded else device, "max_length": settings.max_length, "cache": cache}
    scores = rules.scores(settings.rule)
    load = partial(load_reward_model, head_seed=settings.seed) if scores else models.load
    net, tokenizer = _loaded(lambda: load(settings.model, dtype="float32", **where), settings, ranks, cache, sharded)
    said = settings.lora
    adapter = None if said is None else agreed(ranks, lambda: attach(net, **said, seed=settings.seed))
    ask = by_first if sharded else agreed
    layout: Layout = ask(ranks, lambda: layout_of_scores(net) if scores else layout_of(net))
    dtype = getattr(torch, settings.compute_dtype(device))
    if settings.gradient_checkpointing:
        agreed(ranks, lambda: checkpoint_layers(net))
    if settings.compile:
        compile_parts(net)
    if sharded:  # which gives the layers' classes other names
        weights = tensors(net) if ranks.first else None
        shard(net, dtype)
        deal(net, weights, device)
        del weights
    budget = settings.token_budget or default_budget(net)
    memory = agreed(
        ranks,
        lambda: preflight(
            net,
            budget,
            training=True,
            ranks=ranks.world if sharded else 1,
            gradient_checkpointing=settings.gradient_checkpointing,
            dtype=dtype,
        ),
    )
    say(in_words(memory), shown=progress)
    return Policy(net, layout, budget, dtype, ranks, sharded, adapter, scores), tokenizer, memory


def _loaded(
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    settings: Settings,
    ranks: Ranks,
    cache: Path,
    sharded: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer; where it will be divided, ranks other than 0 have it without weights."""
    if not sharded:
        return agreed(ranks, load)
    read: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []

    def kind() -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        read.append(load())
        return type(read[0][0]), read[0][0].config

    built = by_first(ranks, kind)
    tokenizer = agreed(ranks, lambda: read[0][1] if read else models.load_tokenizer(settings.model, cache=cache))
    return read[0][0] if read else hollow(*built), tokenizer


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let each layer keep its input alone and run again in the backward pass.

    ValueError where the model's family cannot. The layers think that they train, as they checkpoint only then; what
    stands in them does not, and rates of their own (OPT's) are 0, so that there is no dropout still.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing: leave gradient_checkpointing out")
    for layer in layers:
        vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = layer.training = True
        vars(layer).update({name: 0.0 for name, rate in vars(layer).items() if "drop" in name and type(rate) is float})


def compile_parts(model: PreTrainedModel) -> None:
    """Compile what of each layer does not depend on packing: its norms and its feed-forward part, in place.

    Attention stays as it is: its spans differ from pack to pack, and each would be compiled anew.
    """
    kinds = set(model._no_split_modules or ())
    for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
        for name, part in layer.named_children():
            if not name.endswith(("attn", "attention")):
                part.compile(dynamic=True)


@contextmanager
def deterministically(wanted: bool) -> Iterator[None]:
    """Refuse, for a while, operations whose result depends on the order of threads."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product runs on a GPU
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
