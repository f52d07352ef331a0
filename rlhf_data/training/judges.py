"""A trained reward model as the judge of what policies write."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_data.scoring.encode import Message, encode
from rlhf_data.scoring.identity import told
from rlhf_data.scoring.logprobs import default_budget
from rlhf_data.scoring.packs import Group
from rlhf_data.scoring.rewards import is_reward_model, layout_of_scores, load_reward_model
from rlhf_data.training.step import Policy, sequence_logps

# Prompts (n) and the texts written to each (n, samples) → rewards (n, samples), and codes (n), None where it could read
# all texts of the prompt; its rewards are NaN where it could not.
Judge = Callable[[Sequence[list[Message]], Sequence[Sequence[str]]], tuple[np.ndarray, list[str | None]]]


def check_judge(model: dict[str, Any]) -> None:
    """Refuse, before anything is loaded, a model that judges nothing.

    Raises:
        ValueError: it has no scalar head.
    """
    if not is_reward_model(model):
        raise ValueError(f"{model['path']} is no reward model, so it judges nothing: name a run of rm or rm_margin")


def open_judge(model: dict[str, Any], *, dtype: str, token_budget: int | None, cache: Path) -> Judge:
    """A reward model, loaded to judge; text becomes tokens as its folder says.

    Args:
        model: its reference.
        dtype: see `models.load`.
        token_budget: most tokens of a forward; None takes `default_budget`.
        cache: folder for digests.

    Raises:
        ValueError: see `check_judge`.
    """
    check_judge(model)
    said = told(model)
    encoding = {
        "template": said.get("template") or "chat",
        "max_length": said.get("max_length") or 1024,
        "max_prompt_length": said.get("max_prompt_length"),
    }
    net, tokenizer = load_reward_model(
        model, dtype=dtype, device="auto", max_length=encoding["max_length"], cache=cache
    )
    policy = Policy(net, layout_of_scores(net), token_budget or default_budget(net), scores=True)

    def judge(prompts: Sequence[list[Message]], texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, list[str | None]]:
        samples = len(texts[0])
        asked = [prompt for prompt in prompts for _ in range(samples)]
        encoded = encode(tokenizer, asked, [text for written in texts for text in written], **encoding)
        rows = [slice(k * samples, (k + 1) * samples) for k in range(len(prompts))]
        codes = [next(filter(None, encoded.refused[row]), None) for row in rows]
        read = [k for k, code in enumerate(codes) if code is None]
        # Sequences of one prompt may have been cut at different places, so each answer comes with its own.
        groups = [
            Group(encoded.prompt_ids[i], [encoded.completion_ids[i]])
            for k in read
            for i in range(rows[k].start, rows[k].stop)
        ]
        rewards = np.full((len(prompts), samples), np.nan)
        if groups:
            rewards[read] = sequence_logps(policy, groups).cpu().numpy().reshape(len(read), samples)
            if not np.isfinite(rewards[read]).all():
                raise ValueError("the reward model gives rewards that are no numbers (NaN or ∞): it is damaged")
        return rewards, codes

    return judge


def judged_by_both(
    judge: Judge, prompts: Sequence[list[Message]], before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """What a judge thinks of two models' answers to the same prompts.

    Returns:
        rewards of `before` and of `after`, (kept, samples); which prompts are kept, (kept,): those all of whose answers
        the judge could read; and how many are not, by code.
    """
    (first, lost), (second, also) = judge(prompts, before), judge(prompts, after)
    codes = [one or other for one, other in zip(lost, also, strict=True)]
    kept = np.asarray([k for k, code in enumerate(codes) if code is None], dtype=int)
    return first[kept], second[kept], kept, dict(Counter(code for code in codes if code))
