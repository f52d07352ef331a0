"""How completions stand in a batch: prompts once with all their completions, whole groups to a forward.

In a pack, groups follow each other in one row without padding, and a completion's last token, whose prediction nobody
asks for, does not run at all. Models whose attention cannot be packed run in padded batches, a row a completion.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
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
    counts = np.fromiter((len(completions) for _, completions in groups), np.int64, len(groups))
    whole = [completion for _, completions in groups for completion in completions]
    parts = [part for prompt, many in groups for part in (prompt, *[completion[:-1] for completion in many])]
    ran = np.fromiter(map(len, parts), np.int64, len(parts))
    wanted = np.fromiter(map(len, whole), np.int64, len(whole))
    ends = ran.cumsum()
    starts = ends - ran
    completion = np.ones(len(parts), bool)
    completion[(counts + 1).cumsum() - counts - 1] = False
    prompts = ran[~completion]
    first = wanted.cumsum() - wanted
    begins = completion * prompts.repeat(counts + 1)  # where in its sequence each part begins
    positions = np.arange(ends[-1]) + (begins - starts).repeat(ran)
    rows = np.arange(first[-1] + wanted[-1]) + (starts[completion] - 1 - first).repeat(wanted)
    rows[first] = (ends[~completion] - 1).repeat(counts)  # a prompt's end predicts all the first tokens
    return Batch(
        input_ids=_tensor(_flat(parts), device)[None],
        rows=_tensor(rows, device),
        targets=_tensor(_flat(whole), device),
        lengths=wanted.tolist(),
        forward={"position_ids": _tensor(positions, device)[None]},
    )


def _flat(parts: Sequence[Ids]) -> np.ndarray:
    return np.concatenate(parts, dtype=np.int64, casting="unsafe")  # an empty list counts as floats


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


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
        input_ids=_tensor(ids, device),
        rows=_tensor(np.concatenate(rows), device),
        targets=_tensor(_flat([completion for _, completion in pairs]), device),
        lengths=[len(completion) for _, completion in pairs],
        forward={
            "attention_mask": _tensor(mask, device),
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
