"""What is freed is kept, and goes back when asked; what scores starts in an environment of flat memory."""

import json
import os
import platform
import subprocess
import sys

import pytest

from rlhf_data.scoring.allocator import flat

GLIBC = platform.libc_ver()[0] == "glibc"
SETTINGS = ("GLIBC_TUNABLES", "MKL_DISABLE_FAST_MM")

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

RESTARTED = """
import json, os, sys
from rlhf_data.scoring.allocator import restart_flat

settings = sorted(name for name in ("GLIBC_TUNABLES", "MKL_DISABLE_FAST_MM") if name in os.environ)
told = {"pid": os.getpid(), "arguments": sys.argv[1:], "settings": settings, "utf8": sys.flags.utf8_mode}
print(json.dumps(told), flush=True)
restart_flat()
"""

TOLD = """
import json, os, sys
settings = sorted(name for name in ("GLIBC_TUNABLES", "MKL_DISABLE_FAST_MM") if name in os.environ)
print(json.dumps(settings), file=sys.stderr)
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc hands memory back by itself")
def test_what_is_freed_is_not_cleared_again_and_goes_back_when_asked():
    small = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # pages, as torch has them
    ran = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True, env=small)
    first, kept, returned = map(int, ran.stdout.split())
    assert first > 500  # pages of 4 KiB
    assert kept < first / 10
    assert returned >= 15  # MiB


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_what_the_user_set_stays_and_a_second_look_changes_nothing():
    settings = flat({"MKL_DISABLE_FAST_MM": "0", "HOME": "/root"})
    assert settings["MKL_DISABLE_FAST_MM"] == "0"
    assert settings["HOME"] == "/root"
    assert "arena_max=1" in settings["GLIBC_TUNABLES"]
    assert flat(settings) == settings


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_a_command_restarts_once_as_itself_with_its_arguments(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(RESTARTED)
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-X", "utf8", script, "a b", "ü"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    before, after = map(json.loads, ran.stdout.splitlines())
    assert before["pid"] == after["pid"]
    assert before["arguments"] == after["arguments"] == ["a b", "ü"]
    assert (before["settings"], after["settings"]) == ([], sorted(SETTINGS))
    assert after["utf8"] == 1


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
@pytest.mark.parametrize("command", [["-m", "rlhf_data.cli", "score", "--help"], ["-m", "rlhf_data.scoring", "--help"]])
def test_what_scores_starts_itself_with_the_settings(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(TOLD)
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    plain |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, env=plain)
    assert [json.loads(line) for line in ran.stderr.splitlines()] == [[], sorted(SETTINGS)]
    assert "usage" in ran.stdout.lower()
