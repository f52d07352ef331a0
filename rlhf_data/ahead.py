"""Work on two things at a time: the next is made while the one before is used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(things: Iterable[T]) -> Iterator[T]:
    """The same, in their order, each made in a thread while the caller is busy with the one before.

    Never more than one is made ahead. What making one raises is raised where it would have come.
    """
    end = object()
    source = iter(things)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, end)
        while (thing := coming.result()) is not end:
            coming = pool.submit(next, source, end)
            yield thing  # pyright: ignore[reportReturnType]: the end is not one of them
