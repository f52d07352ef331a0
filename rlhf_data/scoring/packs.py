"""How completions stand in a batch: prompts once with all their completions, whole groups to a forward.

In a pack, groups follow each other in one row without padding, and a completion's last token, whose prediction nobody
asks for, does not run at all. Models whose attention cannot be packed run in padded batches, a row a completion.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Layout = Literal["packed", "padded"]
Ids = Sequence[int] | np.ndarray  # token ids; arrays, which are views of a whole split's, go into packs at once


class Group(NamedTuple):
    """A prompt with completions of it, as token ids; neither may be empty."""

    prompt: Ids
    completions: Sequence[Ids]


class Batch(NamedTuple):
    input_ids: Tensor  # (rows, width)
    rows: Tensor  # (targets,): positions in the flattened batch that predict a completion token
    targets: Tensor  # (targets,)
    lengths: list[int]  # tokens of each completion, in order
    forward: dict[str, Any]


def plan(groups: Sequence[Group], token_budget: int, layout: Layout) -> list[list[int]]:
    """Indices of the groups of each forward, longest groups first, none over `token_budget` tokens if it can be helped.

    >>> plan([Group([1], [[2]]), Group([1, 2], [[3, 4]]), Group([1], [[2, 3]])], 4, "packed")
    [[1, 0], [2]]
    """
    if layout == "packed":
        return fill(np.fromiter((size(group, layout) for group in groups), np.int64, len(groups)), token_budget)
    widths = np.fromiter(map(_width, groups), np.int64, len(groups))
    rows = np.fromiter((len(group.completions) for group in groups), np.int64, len(groups))
    return _fill_pads(widths, rows, token_budget)


def size(group: Group, layout: Layout) -> int:
    """Tokens that a group runs."""
    if layout == "packed":
        return len(group.prompt) + sum(map(len, group.completions)) - len(group.completions)
    return len(group.completions) * _width(group)


def fill(sizes: np.ndarray, token_budget: int) -> list[list[int]]:
    """Packs of things of these sizes (n,), longest first, by best fit: each goes where it leaves the least room.

    >>> fill(np.array([1, 3, 2]), 4)
    [[1, 0], [2]]
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    order = np.argsort(-sizes, kind="stable")
    for i, tokens in zip(order.tolist(), sizes[order].tolist(), strict=True):
        at = bisect_left(room, (tokens, -1))
        left, pack = room.pop(at) if at < len(room) else (token_budget, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(i)
        insort(room, (left - tokens, pack))
    return packs


def pack(groups: Sequence[Group], device: torch.device) -> Batch:
    """One row: each group's prompt, then its completions without their last tokens."""
    parts = [ids for prompt, completions in groups for ids in (prompt, *completions)]
    counts = np.fromiter((len(group.completions) for group in groups), np.int64, len(groups))
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    prompt = np.zeros(len(parts), bool)
    prompt[np.cumsum(counts + 1) - counts - 1] = True
    stream = np.concatenate(parts, dtype=np.int64, casting="unsafe")  # every id, completions' last ones too
    runs = np.ones(len(stream), bool)
    runs[np.cumsum(lengths)[~prompt] - 1] = False
    ran = lengths - ~prompt
    starts = np.cumsum(ran) - ran
    n_prompt, wanted = lengths[prompt], lengths[~prompt]
    begins = np.where(prompt, 0, np.repeat(n_prompt, counts + 1))  # where in its sequence each part begins
    positions = np.arange(int(ran.sum())) + np.repeat(begins - starts, ran)
    first = np.cumsum(wanted) - wanted
    rows = np.arange(int(wanted.sum())) + np.repeat(starts[~prompt] - 1 - first, wanted)
    rows[first] = np.repeat(starts[prompt] + n_prompt - 1, counts)  # a prompt's end predicts all the first tokens
    return Batch(
        input_ids=torch.from_numpy(stream[runs])[None].to(device),
        rows=torch.from_numpy(rows).to(device),
        targets=torch.from_numpy(stream[np.repeat(~prompt, lengths)]).to(device),
        lengths=wanted.tolist(),
        forward={
            "position_ids": torch.from_numpy(positions)[None].to(device),
            "spans": _spans(n_prompt.tolist(), (wanted - 1).tolist(), counts.tolist(), device),
        },
    )


def _spans(
    prompts: list[int], tails: list[int], counts: list[int], device: torch.device
) -> list[tuple[int, int, int, Tensor | None]]:
    """(start, split, end, mask) of each group: tokens up to `split` are its prompt and its first completion."""
    spans = []
    start = at = 0
    for n_prompt, count in zip(prompts, counts, strict=True):
        group = tails[at : at + count]
        mask = _group_mask(n_prompt, group)
        end = start + n_prompt + sum(group)
        spans.append((start, start + n_prompt + group[0], end, None if mask is None else mask.to(device)))
        start, at = end, at + count
    return spans


def _group_mask(n_prompt: int, tails: Sequence[int]) -> Tensor | None:
    """(tokens after the first completion, tokens of the group): who sees whom among the later completions."""
    split, end = n_prompt + tails[0], n_prompt + sum(tails)
    if split == end:
        return None
    seen = np.zeros((end - split, end), bool)
    seen[:, :n_prompt] = True
    at = 0
    for n in tails[1:]:
        seen[at : at + n, split + at : split + at + n] = _lower(1 << n.bit_length())[:n, :n]
        at += n
    return torch.from_numpy(seen)


@lru_cache(16)
def _lower(n: int) -> np.ndarray:
    """True where the column is at most the row, (n, n); sizes are powers of two, so few are ever made."""
    return np.tri(n, dtype=bool)


def pad(groups: Sequence[Group], device: torch.device) -> Batch:
    """A row a completion, padded on the right."""
    pairs = [(prompt, completion) for prompt, completions in groups for completion in completions]
    width = max(map(_width, groups))
    ids = np.zeros((len(pairs), width), np.int64)
    mask = np.zeros_like(ids)
    rows = []
    for i, (prompt, completion) in enumerate(pairs):
        tokens = len(prompt) + len(completion) - 1
        ids[i, : len(prompt)] = prompt
        ids[i, len(prompt) : tokens] = completion[:-1]
        mask[i, :tokens] = 1
        rows.append(np.arange(i * width + len(prompt) - 1, i * width + tokens))
    return Batch(
        input_ids=torch.from_numpy(ids).to(device),
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(
            np.concatenate([completion for _, completion in pairs], dtype=np.int64, casting="unsafe")
        ).to(device),
        lengths=[len(completion) for _, completion in pairs],
        forward={
            "attention_mask": torch.from_numpy(mask).to(device),
            "position_ids": torch.arange(width, device=device).expand(len(pairs), width),
        },
    )


def _width(group: Group) -> int:
    return len(group.prompt) + max(map(len, group.completions)) - 1


def _fill_pads(widths: np.ndarray, rows: np.ndarray, token_budget: int) -> list[list[int]]:
    """Groups of about one width together; both (n,): how wide a group is, and how many rows it takes."""
    order = np.lexsort((np.arange(len(widths)), -rows * widths, -widths))
    batches: list[list[int]] = []
    held, width = 0, 0
    for i in order.tolist():
        held += int(rows[i])
        if not batches or held * width > token_budget:
            batches.append([])
            held, width = int(rows[i]), int(widths[i])
        batches[-1].append(i)
    return batches
