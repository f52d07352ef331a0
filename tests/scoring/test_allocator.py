"""What is freed is kept, and goes back when asked."""

import os
import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
import numpy as np
from rlhf_data.scoring.allocator import give_back, keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (9, 20, 14):  # MiB
        np.ones(size << 17)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

faults()
first = faults()
keep_freed()
faults()
kept, held = faults(), resident()
give_back()
print(first, kept, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back by itself")
def test_what_is_freed_is_not_cleared_again_and_goes_back_when_asked():
    small = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # pages, as torch has them
    ran = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True, env=small)
    first, kept, returned = map(int, ran.stdout.split())
    assert first > 500  # pages of 4 KiB
    assert kept < first / 10
    assert returned >= 15  # MiB
