"""What the C library does with the memory that tensors leave.

By its own rules glibc hands most of it back to the system, which clears every page before the next operation gets it:
on a CPU that is a tenth of a forward pass. Kept instead, it serves the next operation, and goes back between batches,
whose unlike sizes leave holes. Elsewhere than on glibc nothing happens.
"""

import ctypes
from collections.abc import Callable

# Numbers of <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed() -> None:
    """From now on keep what this process frees, until `give_back`; tensors of over 32 MiB go back as before."""
    if mallopt := _of_glibc("mallopt"):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_TOP_PAD, 64 << 20)


def give_back() -> None:
    """Hand the system all that is free now."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no library of the program itself
        return None
