"""OpenAssistant's message trees (Köpf et al. 2023, arXiv:2304.07327): ranked sibling answers at every depth."""

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from rlhf_data.sources.cells import JSON
from rlhf_data.sources.observations import OBSERVATION, REASON, Read

# The nesting has no end, so a typed column would be as deep as the deepest tree of the file.
TABLES = {"raw": {"prompt": JSON}}
_ROLES = {"prompter": "user", "assistant": "assistant"}
_COLUMNS = ("record", "prompt", "completion", "kind", "value", "model", "category")
Found = tuple[str, tuple[Any, ...]]  # "rows", "rejects" or "skipped", and the row


def read(raw: pl.DataFrame) -> Read:
    """One rank for each ranked answer, under the messages that lead to it; a record is a whole tree.

    The order of siblings in the file is that of their ranks: nothing here depends on it.

    Args:
        raw: record; prompt (JSON text): the root message, with role, text, rank?, model_name?, lang?, deleted? and
            replies, which are messages too.

    Returns:
        rows: ranks (0 is best), depth first; the category is the language;
        rejects: `tree.malformed`: no root message, or a message without role or text;
        skipped: `rank.missing` (an answer without a rank: alone, or never ranked), `rank.alone` (the only ranked one),
        `message.deleted` (with all that follows it), `reply.missing` (a tree without answers).
    """
    found: dict[str, list[tuple[Any, ...]]] = {"rows": [], "rejects": [], "skipped": []}
    # A tree is walked message by message: no expression recurses.
    for record, text in raw.select("record", "prompt").iter_rows():
        for kind, row in _tree(record, None if text is None else json.loads(text)):
            found[kind].append(row)
    schema = {name: OBSERVATION[name] for name in _COLUMNS}
    rows = pl.DataFrame(found["rows"], schema=schema, orient="row")
    return Read(rows, *(pl.DataFrame(found[kind], schema=REASON, orient="row") for kind in ("rejects", "skipped")))


def _tree(record: int, root: Any) -> Iterator[Found]:
    try:
        found = list(_answers(record, root, []))
    except (AttributeError, KeyError, TypeError) as error:
        yield "rejects", (record, "tree.malformed", f"{type(error).__name__}: {error}")
        return
    yield from found or [("skipped", (record, "reply.missing", None))]


def _answers(record: int, message: Any, path: list[dict[str, str]]) -> Iterator[Found]:
    """The ranked answers to a message, then those further down; `path` leads to the message."""
    if message.get("deleted"):
        yield "skipped", (record, "message.deleted", message.get("message_id"))
        return
    here = [*path, {"role": _ROLES[message["role"]], "content": _text(message["text"])}]
    replies = message.get("replies") or []
    answers = [reply for reply in replies if reply["role"] == "assistant" and not reply.get("deleted")]
    ranked = [answer for answer in answers if answer.get("rank") is not None]
    for answer in answers:
        if answer.get("rank") is None or len(ranked) == 1:
            code = "rank.missing" if answer.get("rank") is None else "rank.alone"
            yield "skipped", (record, code, answer.get("message_id"))
        else:
            note = (answer.get("model_name"), answer.get("lang"))
            yield "rows", (record, here, _text(answer["text"]), "rank", float(answer["rank"]), *note)
    for reply in replies:
        yield from _answers(record, reply, here)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a message's text is {value!r}")
    return value
