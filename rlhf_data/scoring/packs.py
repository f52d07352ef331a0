"""How completions stand in a batch: prompts once with all their completions, whole groups to a forward.

In a pack, groups follow each other in one row without padding, and a completion's last token, whose prediction nobody
asks for, does not run at all. Models whose attention cannot be packed run in padded batches, a row a completion.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["packed", "padded"]


class Group(NamedTuple):
    """A prompt with completions of it, as token ids; neither may be empty."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


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
    sizes = [size(group, layout) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: (-sizes[i], i))
    return _fill_packs(order, sizes, token_budget) if layout == "packed" else _fill_pads(order, groups, token_budget)


def size(group: Group, layout: Layout) -> int:
    """Tokens that a group runs."""
    tails = sum(len(completion) - 1 for completion in group.completions)
    if layout == "packed":
        return len(group.prompt) + tails
    return len(group.completions) * _width(group)


def pack(groups: Sequence[Group], device: torch.device) -> Batch:
    """One row: each group's prompt, then its completions without their last tokens."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    spans = []
    for group in groups:
        start, n_prompt = len(ids), len(group.prompt)
        owner = [0] * n_prompt
        ids += group.prompt
        positions += range(n_prompt)
        for number, completion in enumerate(group.completions):
            rows += [start + n_prompt - 1, *range(len(ids), len(ids) + len(completion) - 1)]
            ids += completion[:-1]
            positions += range(n_prompt, n_prompt + len(completion) - 1)
            owner += [number + 1] * (len(completion) - 1)
        split = n_prompt + len(group.completions[0]) - 1
        spans.append((start, start + split, len(ids), _group_mask(owner, split, device)))
    flat = [token for group in groups for completion in group.completions for token in completion]
    return Batch(
        input_ids=torch.tensor([ids], device=device),
        rows=torch.tensor(rows, device=device),
        targets=torch.tensor(flat, device=device),
        lengths=[len(completion) for group in groups for completion in group.completions],
        forward={"position_ids": torch.tensor([positions], device=device), "spans": spans},
    )


def _group_mask(owner: list[int], split: int, device: torch.device) -> Tensor | None:
    """(tokens after `split`, tokens of the group): who sees whom among a group's second and later completions."""
    if split == len(owner):
        return None
    of = torch.tensor(owner, device=device)
    at = torch.arange(len(owner), device=device)
    seen = (of[None, :] == 0) | (of[split:, None] == of[None, :])
    return seen & (at[split:, None] >= at[None, :])


def pad(groups: Sequence[Group], device: torch.device) -> Batch:
    """A row a completion, padded on the right."""
    pairs = [(group.prompt, completion) for group in groups for completion in group.completions]
    width = max(map(_width, groups))
    ids = torch.zeros((len(pairs), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    rows: list[int] = []
    for i, (prompt, completion) in enumerate(pairs):
        tokens = [*prompt, *completion[:-1]]
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        rows += range(i * width + len(prompt) - 1, i * width + len(tokens))
    positions = torch.arange(width, device=device).expand(len(pairs), width)
    return Batch(
        input_ids=ids.to(device),
        rows=torch.tensor(rows, device=device),
        targets=torch.tensor([token for _, completion in pairs for token in completion], device=device),
        lengths=[len(completion) for _, completion in pairs],
        forward={"attention_mask": mask.to(device), "position_ids": positions},
    )


def _width(group: Group) -> int:
    return len(group.prompt) + max(len(completion) for completion in group.completions) - 1


def _fill_packs(order: list[int], sizes: list[int], token_budget: int) -> list[list[int]]:
    """Best fit: each group goes where it leaves the least room."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    for i in order:
        at = bisect_left(room, (sizes[i], -1))
        left, pack = room.pop(at) if at < len(room) else (token_budget, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(i)
        insort(room, (left - sizes[i], pack))
    return packs


def _fill_pads(order: list[int], groups: Sequence[Group], token_budget: int) -> list[list[int]]:
    order = sorted(order, key=lambda i: -_width(groups[i]))
    batches: list[list[int]] = []
    rows, width = 0, 0
    for i in order:
        rows += len(groups[i].completions)
        if not batches or rows * width > token_budget:
            batches.append([])
            rows, width = len(groups[i].completions), _width(groups[i])
        batches[-1].append(i)
    return batches
