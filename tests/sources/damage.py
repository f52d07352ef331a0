"""Records with something wrong at every place."""

import json
from collections.abc import Iterator
from typing import Any

WRONG = (None, "", 7, -1.5, [], {}, True, [None], "\ud800")


def damaged(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record with each of its parts replaced by each of the wrong values in turn."""
    for path in places(record):
        for value in WRONG if path else ():
            copy = json.loads(json.dumps(record))
            part = copy
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = value
            yield copy


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all parts of a record."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))
