"""The name that was probably meant."""

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str], before: str = "") -> str:
    """`before` and a question after the closest known name; empty where none is close.

    >>> hint("ajacent", ["all", "adjacent"], ": ")
    ": did you mean 'adjacent'?"
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1) or [name for name in names if word and name.startswith(word)]
    return f"{before}did you mean {close[0]!r}?" if close else ""
