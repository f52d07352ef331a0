"""The model to be trained: loaded, laid out, and made to fit."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_data.scoring import models
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.progress import say
from rlhf_data.training.adapters import attach
from rlhf_data.training.settings import Settings
from rlhf_data.training.step import Policy


def prepare(
    settings: Settings, device: str, cache: Path, progress: bool
) -> tuple[Policy, PreTrainedTokenizerBase, dict[str, int]]:
    """The policy as the settings want it, its tokenizer, and what `preflight` says of the memory it takes.

    Raises:
        ValueError: it does not load, or does not fit.
    """
    net, tokenizer = models.load(
        settings.model, dtype="float32", device=device, max_length=settings.max_length, cache=cache
    )
    adapter = None if settings.lora is None else attach(net, **settings.lora, seed=settings.seed)
    policy = Policy(net, layout_of(net), settings.token_budget or default_budget(net), adapter)
    memory = preflight(net, policy.token_budget, training=True)
    say(in_words(memory), shown=progress)
    return policy, tokenizer, memory
