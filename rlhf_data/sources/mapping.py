r"""The grammar of a declared mapping: `columns:` says which raw columns hold the parts of an observation.

    columns: {ROLE: SOURCE, …, each: [{ROLE: SOURCE, …}, …]}

A SOURCE is a path to a raw column (`data.prompt`, `annotations[0].value`), or one of

    {from: PATH}                              the same
    {from: PATH, map: {good: 1, bad: 0}}      values by name; a value mapped to null is left out, any other is refused
    {from: PATH, polarity: lower_is_better}   ratings turned round
    {from: PATH, role: from, content: value, roles: {human: user, gpt: assistant}}      messages with other names
    {last_of: PATH}                           the last, assistant's, message of a list; a prompt from the same list
                                              is what stands before it
    {concat: [PATH, …], separator: "\n\n"}      texts joined, blank ones left out
    {value: CONSTANT}
    {helpfulness: SOURCE, honesty: SOURCE}    ratings only: one for each aspect

`each` makes a wide row long: every entry is read together with the roles beside `each`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import polars as pl

from rlhf_data.sources.cells import INFER, SCALAR, TURNS, Wanted, absent, tokens
from rlhf_data.words import hint

TEXTS = ("prompt", "system", "completion", "other", "chosen", "rejected")
NUMBERS = ("rating", "label", "rank", "preference")
NOTES = ("annotator", "category", "model", "other_model", "aspect", "position")
ROLES = (*TEXTS, *NUMBERS, *NOTES)
ANSWERS = ("completion", "other", "chosen", "rejected")
_SOURCES = {
    "from": {"map", "polarity", "role", "content", "roles"},
    "last_of": {"role", "content"},
    "concat": {"separator"},
    "value": set[str](),
}
Problem = tuple[tuple[str | int, ...], str]


def entries(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mappings that a mapping stands for: itself, or one for each entry of `each`."""
    shared = {role: source for role, source in columns.items() if role != "each"}
    return [{**shared, **entry} for entry in columns.get("each", [{}])]


def identity(names: Iterable[str]) -> dict[str, Any]:
    """The mapping of a table whose columns already have our names."""
    known = set(names)
    return {role: role for role in ROLES if role in known}


def source_of(source: Any) -> dict[str, Any]:
    return {"from": source} if isinstance(source, str) else dict(source)


def aspects_of(source: Any) -> dict[str | None, dict[str, Any]]:
    """The sources of a rating by aspect; None is the aspect of a rating that has none."""
    if isinstance(source, Mapping) and not _SOURCES.keys() & source.keys():
        return {str(aspect): source_of(part) for aspect, part in source.items()}
    return {None: source_of(source)}


def paths_of(source: Mapping[str, Any]) -> list[str]:
    if "concat" in source:
        return list(source["concat"])
    return [source[key] for key in ("from", "last_of") if key in source]


def mapped_columns(columns: Mapping[str, Any]) -> set[str]:
    """The paths that a mapping reads."""
    return set(wanted(columns))


def wanted(columns: Mapping[str, Any]) -> dict[str, Wanted]:
    """What a mapping asks of the raw file: paths, and as what."""
    asked: dict[str, Wanted] = {}
    for entry in entries(columns):
        for role, source in entry.items():
            for part in aspects_of(source).values() if role == "rating" else [source_of(source)]:
                for path in paths_of(part):
                    asked[path] = max(asked.get(path, INFER), _asked(role, part), key=_strictness)
    return asked


def check_columns(columns: Mapping[str, Any], available: Mapping[str, Any]) -> list[Problem]:
    """What a mapping asks for and a file does not have.

    Args:
        columns: a mapping without `problems`.
        available: the file's columns; the values are not looked at.
    """
    names = list(available)
    return [
        (where, message)
        for where, part in _located(columns)
        for path in paths_of(part)
        for message in absent([path], names)
    ]


def problems(columns: Any) -> list[Problem]:
    """What is wrong with a mapping by itself, each with the place in it."""
    if not isinstance(columns, Mapping):
        return [((), "must be a mapping of our names to the file's columns")]
    found: list[Problem] = []
    for role, source in columns.items():
        if role != "each":
            found += _role_problems(role, source, (role,))
    each = columns.get("each")
    if each is not None and not (isinstance(each, list) and each and all(isinstance(e, Mapping) for e in each)):
        return [*found, (("each",), "must be a list of mappings, one for each answer of a row")]
    for index, entry in enumerate(each or []):
        for role, source in entry.items():
            found += _role_problems(role, source, ("each", index, role))
    if not found:
        for index, entry in enumerate(entries(columns)):
            place = ("each", index) if each else ()
            found += [(place, message) for message in _combination_problems(entry)]
    return found


def _asked(role: str, source: Mapping[str, Any]) -> Wanted:
    if "last_of" in source or source.keys() & {"role", "content"}:
        fields = dict.fromkeys((source.get("role", "role"), source.get("content", "content")), pl.String())
        return pl.List(pl.Struct(fields))
    if "map" in source or role in NUMBERS:
        return INFER
    if role in NOTES:
        return SCALAR
    return TURNS if role == "prompt" and "from" in source else pl.String()


def _strictness(wanted: Wanted) -> int:
    return (INFER, SCALAR, TURNS).index(wanted) if isinstance(wanted, str) else 3 + wanted.is_nested()


def _located(columns: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Every source of a mapping and where it stands."""
    parts = [(("each", i), entry) for i, entry in enumerate(columns.get("each", []))]
    for place, entry in [((), {k: v for k, v in columns.items() if k != "each"}), *parts]:
        for role, source in entry.items():
            if role == "rating":
                for aspect, part in aspects_of(source).items():
                    yield (*place, role, *([aspect] if aspect else [])), part
            else:
                yield (*place, role), source_of(source)


def _role_problems(role: Any, source: Any, where: tuple[Any, ...]) -> list[Problem]:
    if role not in ROLES:
        meant = hint(str(role), (*ROLES, "each"), ", ")
        return [(where, f"is no part of an observation{meant}; known: {', '.join((*ROLES, 'each'))}")]
    if isinstance(source, Mapping) and role == "rating" and source and not _SOURCES.keys() & source.keys():
        return [p for aspect, part in source.items() for p in _source_problems(role, part, (*where, aspect))]
    return _source_problems(role, source, where)


def _source_problems(role: str, source: Any, where: tuple[Any, ...]) -> list[Problem]:
    if isinstance(source, str):
        return [] if source and tokens(source) else [(where, "is empty; write a column's name")]
    if not isinstance(source, Mapping):
        return [
            (where, f"must be a column's name or one of {{from}}, {{last_of}}, {{concat}}, {{value}}, not {source!r}")
        ]
    kinds = _SOURCES.keys() & source.keys()
    if len(kinds) != 1:
        return [(where, f"must have exactly one of {', '.join(_SOURCES)}")]
    kind = kinds.pop()
    known = {kind, *_SOURCES[kind]}
    found: list[Problem] = [
        ((*where, key), f"is unknown beside `{kind}`{hint(str(key), known, ', ')}; known: {', '.join(sorted(known))}")
        for key in source
        if key not in known
    ]
    checks = {
        "from": lambda value: isinstance(value, str) and value != "",
        "last_of": lambda value: isinstance(value, str) and value != "" and role in ANSWERS,
        "concat": lambda value: _texts(value) and role in TEXTS,
        "value": lambda value: isinstance(value, int | float if role in NUMBERS else str),
        "map": lambda value: (
            isinstance(value, Mapping) and len(value) > 0 and role not in TEXTS and _targets(role, value)
        ),
        "polarity": lambda value: value in ("higher_is_better", "lower_is_better") and role == "rating",
        "role": lambda value: isinstance(value, str) and role in TEXTS,
        "content": lambda value: isinstance(value, str) and role in TEXTS,
        "roles": lambda value: isinstance(value, Mapping) and role == "prompt",
        "separator": lambda value: isinstance(value, str),
    }
    found += [((*where, key), _RULES[key]) for key, value in source.items() if key in known and not checks[key](value)]
    return found


_RULES = {
    "from": "must be a column's name",
    "last_of": f"must be the name of a column of messages, and only {', '.join(ANSWERS)} can be taken from one",
    "concat": f"must be a list of columns' names, and only {', '.join(TEXTS)} can be joined",
    "value": "must be a number (true or false for a label) for a judgment, a text for everything else",
    "map": "must map the file's values to numbers (true or false for a label, within 0 and 1 for a preference; "
    "null leaves the row out), or to texts for annotator, category, model, aspect and position; texts of answers are "
    "not mapped",
    "polarity": "must be higher_is_better or lower_is_better, and belongs to a rating",
    "role": "must be the field of a message that holds its role",
    "content": "must be the field of a message that holds its text",
    "roles": "must map the file's roles to system, user and assistant, and belongs to the prompt",
    "separator": "must be a text",
}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _targets(role: str, values: Mapping[Any, Any]) -> bool:
    kind: Any = (int, float, type(None)) if role in NUMBERS else (str, type(None))
    targets = cast("Mapping[Any, Any]", values).values()
    if not all(isinstance(value, kind) for value in targets):
        return False
    return role != "preference" or all(value is None or 0 <= value <= 1 for value in targets)


def _combination_problems(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with the roles of one entry taken together."""
    has = entry.keys()
    found = [] if "prompt" in has else ["has no prompt"]
    judged = [role for role in ("rating", "label", "rank") if role in has]
    if ("chosen" in has) != ("rejected" in has):
        found.append("needs both of chosen and rejected")
    if "chosen" in has and has & {"completion", "other"}:
        found.append("has chosen and rejected and completion or other as well: one row is one or the other")
    elif "chosen" in has and judged:
        found.append(f"has chosen and rejected, so {judged[0]} could be of either; use `each` with completion instead")
    elif not has & {"completion", "chosen", "rejected"}:
        found.append("has no completion (or chosen and rejected)")
    elif "other" in has and "preference" not in has:
        found.append("compares completion with other, but no preference says which won")
    elif "preference" in has and not has & {"other", "chosen"}:
        found.append("has a preference, but nothing that the completion was compared with (other)")
    if "aspect" in has and isinstance(entry.get("rating"), Mapping) and None not in aspects_of(entry["rating"]):
        found.append("names aspects under rating and in aspect as well")
    return found
