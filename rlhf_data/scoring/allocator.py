"""What the C library does with the memory that tensors leave.

By its own rules glibc hands most of it back to the system, which clears every page before the next operation gets it:
on a CPU that is a tenth of a forward pass. Kept instead, it serves the next operation, and goes back between batches,
whose unlike sizes leave holes. Elsewhere than on glibc nothing happens.

What a process reads only at its start takes a restart: one heap for all threads, and none of the buffers that MKL keeps
for each shape of product that it has met, so that few rows and many need the same memory.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping

# Numbers of <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_FLAT = {
    "MKL_DISABLE_FAST_MM": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1",
}


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


def flat(environment: Mapping[str, str]) -> dict[str, str]:
    """That environment with the settings of flat memory; one that it has already stays as it is."""
    return _FLAT | dict(environment) if _of_glibc("gnu_get_libc_version") else dict(environment)


def restart_flat() -> None:
    """Become the same command in an environment of flat memory; returns where nothing is to be changed."""
    environment = flat(os.environ)
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no library of the program itself
        return None
