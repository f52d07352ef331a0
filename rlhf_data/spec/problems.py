"""A problem of a spec: where it is, what is wrong, how to fix it."""

from collections.abc import Iterable
from typing import NamedTuple

from rlhf_data.words import hint

Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """One problem, printed as `file:line: path: what; how`."""

    file: str
    line: int
    path: str
    what: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return where + (f"{self.path}: " if self.path else "") + self.what


class SpecError(ValueError):
    """A spec cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.file, p.line, p.path))
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """A path as a person writes it.

    >>> dotted(("clean", 0, "where"))
    'clean[0].where'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known name, or all of them.

    >>> did_you_mean("ajacent", ["all", "adjacent"])
    "did you mean 'adjacent'?"
    """
    names = list(known)
    return hint(name, names) or (f"known: {', '.join(names)}" if names else "none is known here")
