"""Log-probs by vLLM's `prompt_logprobs`, for those who have it at hand: the same values as `logprobs.token_logps`.

vLLM runs each prompt again with every completion and makes whole logits, so it is not the fast way; its kernels round
otherwise, so its scores have a recipe of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_data.scoring.packs import Group, Ids


def load(folder: str, *, dtype: str, max_length: int, **engine: Any) -> Any:
    """VLLM's engine for a model's folder; `engine` goes to it as it is (tensor_parallel_size, …).

    Raises:
        ValueError: vLLM is not installed.
    """
    try:
        from vllm import LLM  # pyright: ignore[reportMissingImports]: an extra that few have
    except ImportError as error:
        raise ValueError("the vllm backend needs vLLM: pip install vllm, or use the default backend") from error
    # One more: a request generates at least one token. Cached prefixes have no log-probs.
    return LLM(model=folder, dtype=dtype, max_model_len=max_length + 1, enable_prefix_caching=False, **engine)


def token_logps(llm: Any, groups: Sequence[Group], *, sampling: Any = None) -> list[list[Tensor]]:
    """Log-probs of every completion token, in nats, float32: for each group, one (n_tokens,) a completion.

    Args:
        llm: what `load` gives.
        groups: prompts with their completions.
        sampling: the sampling parameters to use instead of vLLM's own for one token and `prompt_logprobs`.

    Raises:
        ValueError: the answer lacks a token's log-prob.
    """
    if sampling is None:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    requests = [
        {"prompt_token_ids": [int(token) for token in (*prompt, *completion)]}
        for prompt, completions in groups
        for completion in completions
    ]
    answers = iter(llm.generate(requests, sampling, use_tqdm=False))
    return [[_values(next(answers), group.prompt, completion) for completion in group.completions] for group in groups]


def _values(answer: Any, prompt: Ids, completion: Ids) -> Tensor:
    """Of a request's answer, the log-probs of its last tokens; position i holds {token id: its log-prob there}."""
    given = answer.prompt_logprobs or []
    if len(given) != len(prompt) + len(completion):
        raise ValueError(
            f"vLLM gave log-probs of {len(given)} tokens for a sequence of {len(prompt) + len(completion)}: "
            "raise max_model_len above the longest sequence"
        )
    values = []
    for token, there in zip(completion, given[len(prompt) :], strict=True):
        if not there or int(token) not in there:
            raise ValueError(f"vLLM gave no log-prob of token {int(token)}: it needs prompt_logprobs of at least 0")
        values.append(there[int(token)].logprob)
    return torch.tensor(values, dtype=torch.float32)
