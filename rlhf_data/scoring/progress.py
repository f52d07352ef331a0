"""Progress bars on stderr: lively on a terminal, a line now and then in a log."""

import sys
from typing import Any

import transformers
from tqdm import tqdm

# Bars for reading and writing a model's files would break ours apart; a model of ours loads in seconds.
transformers.utils.logging.disable_progress_bar()


def bar(*, total: int, description: str, unit: str, initial: int = 0, shown: bool = True) -> Any:
    """A tqdm bar.

    Args:
        total: units in all.
        description: what is going on, one word.
        unit: what is counted, plural.
        initial: units that were done before.
        shown: whether anything is printed.
    """
    every = 0.2 if sys.stderr.isatty() else 15.0  # seconds
    return tqdm(
        total=total, desc=description, unit=f" {unit}", initial=initial, disable=not shown, mininterval=every, ncols=100
    )
