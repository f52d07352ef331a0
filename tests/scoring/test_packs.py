"""Packs built at once by arrays are those of the plain loop over tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.scoring.packs import Batch, Group, Layout, pack, pad, plan, size

CPU = torch.device("cpu")
token = st.integers(3, 300)
group = st.builds(
    Group,
    st.lists(token, min_size=1, max_size=12),
    st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4),
)


def views(groups: list[Group]) -> list[Group]:
    """The same groups as 16-bit arrays, as a split's token ids are read."""
    return [
        Group(np.asarray(g.prompt, np.uint16), [np.asarray(one, np.uint16) for one in g.completions]) for g in groups
    ]


def packed_token_by_token(groups: list[Group]) -> Batch:
    """What a pack is, written as loops."""
    ids, positions, rows, targets = [], [], [], []
    for prompt, completions in groups:
        start = len(ids)
        ids += prompt
        positions += range(len(prompt))
        for completion in completions:
            rows.append(start + len(prompt) - 1)
            for at, one in enumerate(completion[:-1]):
                rows.append(len(ids))
                ids.append(one)
                positions.append(len(prompt) + at)
            targets += completion
    return Batch(
        torch.tensor([ids]),
        torch.tensor(rows),
        torch.tensor(targets),
        [len(one) for g in groups for one in g.completions],
        {"position_ids": torch.tensor([positions])},
    )


def padded_token_by_token(groups: list[Group]) -> Batch:
    pairs = [(list(g.prompt), list(one)) for g in groups for one in g.completions]
    width = max(len(prompt) + len(one) - 1 for prompt, one in pairs)
    ids = [[*prompt, *one[:-1], *[0] * (width - len(prompt) - len(one) + 1)] for prompt, one in pairs]
    mask = [[int(at < len(prompt) + len(one) - 1) for at in range(width)] for prompt, one in pairs]
    rows = [i * width + len(prompt) - 1 + at for i, (prompt, one) in enumerate(pairs) for at in range(len(one))]
    return Batch(
        torch.tensor(ids),
        torch.tensor(rows),
        torch.tensor([t for _, one in pairs for t in one]),
        [len(one) for _, one in pairs],
        {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor([list(range(width))] * len(pairs))},
    )


def planned_one_by_one(groups: list[Group], budget: int, layout: Layout) -> list[list[int]]:
    """Best fit, longest first, by looking at every pack."""
    sizes = [size(g, layout) for g in groups]
    order = sorted(range(len(groups)), key=lambda i: (-sizes[i], i))
    batches: list[list[int]] = []
    if layout == "packed":
        room: list[int] = []
        for i in order:
            fits = [(left, pack) for pack, left in enumerate(room) if left >= sizes[i]]
            _, at = min(fits, default=(0, len(batches)))
            if at == len(batches):
                batches.append([])
                room.append(budget)
            batches[at].append(i)
            room[at] -= sizes[i]
        return batches
    widths = [len(g.prompt) + max(map(len, g.completions)) - 1 for g in groups]
    rows, width = 0, 0
    for i in sorted(order, key=lambda i: -widths[i]):
        rows += len(groups[i].completions)
        if not batches or rows * width > budget:
            batches.append([])
            rows, width = len(groups[i].completions), widths[i]
        batches[-1].append(i)
    return batches


def assert_same(ours: Batch, theirs: Batch) -> None:
    for name in ("input_ids", "rows", "targets"):
        assert getattr(ours, name).dtype == torch.int64
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.lengths == theirs.lengths
    assert ours.forward.keys() == theirs.forward.keys()
    for name, value in theirs.forward.items():
        assert torch.equal(ours.forward[name], value), name


@pytest.mark.parametrize("read", [list, views], ids=["lists", "arrays"])
@settings(deadline=None, max_examples=60)
@given(groups=st.lists(group, min_size=1, max_size=5))
def test_a_pack_is_that_of_a_loop_over_tokens(read, groups):
    assert_same(pack(read(groups), CPU), packed_token_by_token(groups))


@pytest.mark.parametrize("read", [list, views], ids=["lists", "arrays"])
@settings(deadline=None, max_examples=40)
@given(groups=st.lists(group, min_size=1, max_size=5))
def test_a_padded_batch_is_that_of_a_loop_over_tokens(read, groups):
    assert_same(pad(read(groups), CPU), padded_token_by_token(groups))


@settings(deadline=None, max_examples=60)
@given(groups=st.lists(group, max_size=25), budget=st.integers(4, 200), layout=st.sampled_from(["packed", "padded"]))
def test_a_plan_is_that_of_a_loop_over_packs(groups, budget, layout):
    assert plan(views(groups), budget, layout) == planned_one_by_one(groups, budget, layout)
