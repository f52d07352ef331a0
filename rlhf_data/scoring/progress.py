"""Progress bars on stderr: lively on a terminal, a line now and then in a log."""

import sys

import transformers
from tqdm import tqdm

# Bars for reading and writing a model's files would break ours apart; a model of ours loads in seconds.
transformers.utils.logging.disable_progress_bar()


def bar(description: str, unit: str, *, total: int, initial: int = 0, shown: bool = True) -> tqdm:
    """A bar for `total` units, of which `initial` were done before.

    Args:
        description: what is going on, one word.
        unit: what is counted, plural.
        total: units in all.
        initial: units that were done before.
        shown: whether anything is printed.
    """
    every = 0.2 if sys.stderr.isatty() else 15.0  # seconds
    options = {"initial": initial, "disable": not shown, "mininterval": every, "maxinterval": every, "ncols": 100}
    return tqdm(total=total, desc=f"  {description}", unit=f" {unit}", **options)


def say(text: str, *, shown: bool = True) -> None:
    """A line for a person, on stderr."""
    if shown:
        tqdm.write(f"  {text}", file=sys.stderr)  # above a bar, not into it
