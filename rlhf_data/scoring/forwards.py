"""Passes without gradients over many groups: planned into packs, which on a CPU run several side by side.

Cores that share a forward wait for each other after every operation of it. With a forward each they do not: the same
packs take about a sixth less time, and what a pack gives does not depend on how many run beside it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from rlhf_data.scoring.allocator import give_back
from rlhf_data.scoring.logprobs import grouped_attention
from rlhf_data.scoring.packs import Group, Layout, plan, size

T = TypeVar("T")

_TOKENS = 1024  # of a forward: matrix products of fewer rows are slower by themselves
_STATEFUL = ("dynamic", "longrope")  # rotary embeddings that a forward writes into its module


def forwards(
    model: PreTrainedModel,
    groups: Sequence[Group],
    layout: Layout,
    token_budget: int,
    measure: Callable[[list[int]], T],
) -> Iterator[tuple[list[int], T]]:
    """(which groups, what `measure` gives of them) of each forward, about the longest groups first.

    Args:
        model: what `measure` runs.
        groups: of any number, with all the tokens that run.
        layout: of the model's batches.
        token_budget: most tokens in all forwards that run at a time.
        measure: runs those groups in one forward; it is called in inference mode, where packs run side by side on a
            thread of its own.
    """
    several = side_by_side(model, token_budget)
    fits = [size(group, layout) <= token_budget // several for group in groups]

    def run(picked: list[int]) -> T:
        with torch.inference_mode():
            measured = measure(picked)
        give_back()
        return measured

    with grouped_attention(model, layout):  # which is the model's, not a thread's
        for at_once, fit in ((1, False), (several, True)):  # a group too long for its share has all cores
            among = [i for i, one in enumerate(fits) if one is fit]
            packs = [
                [among[k] for k in pack] for pack in _packs([groups[i] for i in among], token_budget, at_once, layout)
            ]
            yield from zip(packs, _in_order(run, packs, min(at_once, len(packs))), strict=True)


def side_by_side(model: PreTrainedModel, token_budget: int) -> int:
    """How many forwards run at a time: as many as the CPU has threads, while none gets too small; one on a GPU."""
    told = [getattr(module, "rope_type", None) for module in model.modules()]
    rotary = [kind for kinds in told for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])]
    if model.device.type != "cpu" or any(kind in _STATEFUL for kind in rotary):
        return 1
    return max(1, min(torch.get_num_threads(), token_budget // _TOKENS))


def _packs(groups: Sequence[Group], token_budget: int, several: int, layout: Layout) -> list[list[int]]:
    """Packs of which `several` fit the budget; those of the last turn of one size, so that no thread is left alone."""
    packs = plan(groups, token_budget // several, layout)
    if several == 1 or not packs:
        return packs
    last = len(packs) % several or several
    rest = [i for pack in packs[-last:] for i in pack]
    sizes = [size(groups[i], layout) for i in rest]
    share = max(max(sizes), -(-sum(sizes) * 51 // (several * 50)))  # with room for sizes that do not fit exactly
    return packs[:-last] + [[rest[i] for i in pack] for pack in plan([groups[i] for i in rest], share, layout)]


def _in_order(run: Callable[[list[int]], T], packs: Sequence[list[int]], several: int) -> Iterator[T]:
    """`run` of each pack, in their order, `several` at a time, each on its share of the threads."""
    if several <= 1:
        yield from map(run, packs)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[T]] = deque()
    try:
        with ThreadPoolExecutor(several, initializer=torch.set_num_threads, initargs=(threads // several,)) as pool:
            try:
                for picked in packs:
                    waiting.append(pool.submit(run, picked))
                    if len(waiting) > several:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()
    finally:
        torch.set_num_threads(threads)  # a thread's setting, but one that new threads begin with
