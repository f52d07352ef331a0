"""Observations of any table whose columns a mapping declares; `mapping` has the grammar."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from rlhf_data.ids import MESSAGES
from rlhf_data.sources.mapping import ANSWERS, NOTES, aspects_of, entries, source_of
from rlhf_data.sources.observations import REASON, Read, no_rows

_ABSENT = "entry.absent"
_LEFT_OUT = "value.left_out"
_TEXT = pl.lit(None, dtype=pl.String)


def read(raw: pl.DataFrame, *, columns: Mapping[str, Any]) -> Read:
    """Observations of a mapped table.

    Args:
        raw: record, and the columns that `mapping.wanted` asks for, named by their paths.
        columns: the mapping.

    Returns:
        rows: for each record its entries in order, each with its judgments in the order rating, label, rank;
        rejects: `value.unmapped` (not in the map; a label that is neither 0 nor 1), `rating.not_a_number` and the
        like, `prompt.mismatch` (chosen and rejected are conversations that differ before their last message);
        skipped: `value.left_out` (mapped to null), `entry.absent` (an entry of `each` without answer and value).

    Raises:
        ValueError: a column whose type cannot hold what is asked of it.
    """
    reads = [
        _judged(raw, entry, kind, aspect, source, each="each" in columns)
        for entry in entries(columns)
        for kind, aspect, source in _judgments(entry)
    ]
    parts = [pl.concat([part[k] for part in reads]).sort("record", maintain_order=True) for k in range(3)]
    return Read(*parts)


def _judgments(entry: Mapping[str, Any]) -> list[tuple[str, str | None, dict[str, Any] | None]]:
    """The judgments of an entry: kind, aspect, where the value is."""
    if "chosen" in entry or "other" in entry:
        return [("comparison", None, source_of(entry.get("preference", {"value": 1.0})))]
    found: list[tuple[str, str | None, dict[str, Any] | None]] = []
    if "rating" in entry:
        found += [("rating", aspect, source) for aspect, source in aspects_of(entry["rating"]).items()]
    found += [(kind, None, source_of(entry[kind])) for kind in ("label", "rank") if kind in entry]
    return found or [("demonstration", None, None)]


def _judged(
    raw: pl.DataFrame,
    entry: Mapping[str, Any],
    kind: str,
    aspect: str | None,
    source: dict[str, Any] | None,
    *,
    each: bool,
) -> Read:
    """The rows of one judgment of one entry, and what of it is refused or left out."""
    answers = {role: _answer(source_of(entry[role])) for role in ANSWERS if role in entry}
    completion = answers.get("completion", answers.get("chosen", _TEXT))
    value, code, detail = (
        (pl.lit(None, dtype=pl.Float64), _TEXT, _TEXT) if source is None else _number(raw, kind, source)
    )
    differs = _differs(raw, entry)
    absent = completion.is_null() & value.is_null() & code.is_null() if each else pl.lit(False)
    notes = {role: _note(raw, source_of(entry[role])) for role in NOTES if role in entry}
    if aspect is not None:
        notes["aspect"] = pl.lit(aspect)
    table = raw.select(
        "record",
        prompt=_prompt(raw, entry),
        completion=completion,
        other=answers.get("other", answers.get("rejected", _TEXT)),
        kind=pl.lit(kind),
        value=value,
        **{role: notes.get(role, _TEXT) for role in no_rows().columns[6:]},
        code=pl.when(absent).then(pl.lit(_ABSENT)).when(differs).then(pl.lit("prompt.mismatch")).otherwise(code),
        detail=pl.when(differs).then(pl.lit("chosen and rejected differ before their last message")).otherwise(detail),
    )
    left = table.filter(pl.col("code").is_not_null()).select(*REASON)
    out = pl.col("code").is_in([_ABSENT, _LEFT_OUT])
    rows = table.filter(pl.col("code").is_null()).drop("code", "detail")
    return Read(rows, left.filter(~out), left.filter(out))


def _prompt(raw: pl.DataFrame, entry: Mapping[str, Any]) -> pl.Expr:
    """The prompt as messages: without the turn that is the answer, with the system prompt before it."""
    source = source_of(entry["prompt"])
    path = source.get("from")
    if path is not None and isinstance(raw.schema[path], pl.List):
        prompt = _messages(source, raw.schema[path])
        if any(source_of(entry[role]).get("last_of") == path for role in ANSWERS if role in entry):
            prompt = prompt.list.head(prompt.list.len() - pl.min_horizontal(prompt.list.len(), 1))
    else:
        text = _text(source)
        prompt = pl.when(text.is_not_null()).then(pl.concat_list(_message("user", text)))
    if "system" not in entry:
        return prompt
    system = _text(source_of(entry["system"]))
    blank = system.is_null() | (system.str.strip_chars() == "")
    return pl.when(blank).then(prompt).otherwise(pl.concat_list(pl.concat_list(_message("system", system)), prompt))


def _message(role: str, text: pl.Expr) -> pl.Expr:
    return pl.struct(role=pl.lit(role), content=text)


def _messages(source: Mapping[str, Any], dtype: Any) -> pl.Expr:
    """A list of messages with our names for its fields and roles.

    Raises:
        ValueError: the list does not hold messages.
    """
    role, content = source.get("role", "role"), source.get("content", "content")
    fields = [field.name for field in getattr(dtype.inner, "fields", [])]
    if not {role, content} <= set(fields):
        raise ValueError(
            f"{source.get('from', source.get('last_of'))!r} is a list of {', '.join(fields) or dtype.inner}, not of "
            f"messages with {role!r} and {content!r}; say `role:` and `content:` if they have other names"
        )
    name = pl.element().struct.field(role)
    named = name.replace(source["roles"]) if source.get("roles") else name
    message = pl.struct(role=named.cast(pl.String), content=pl.element().struct.field(content).cast(pl.String))
    return pl.col(source.get("from", source.get("last_of"))).list.eval(message)


def _answer(source: Mapping[str, Any]) -> pl.Expr:
    if "last_of" not in source:
        return _text(source)
    last = pl.col(source["last_of"]).list.get(-1, null_on_oob=True)
    from_user = last.struct.field(source.get("role", "role")).str.to_lowercase().is_in(["user", "human", "system"])
    return pl.when(~from_user).then(last.struct.field(source.get("content", "content")))


def _text(source: Mapping[str, Any]) -> pl.Expr:
    """A text: a column, several joined, or the same for all; several are null only where all of them are."""
    if "value" in source:
        return pl.lit(source["value"], dtype=pl.String)
    if "concat" not in source:
        return pl.col(source["from"])
    parts = [pl.col(path) for path in source["concat"]]
    filled = [pl.when(part.str.strip_chars() != "").then(part) for part in parts]
    joined = pl.concat_str(filled, separator=source.get("separator", "\n\n"), ignore_nulls=True)
    return pl.when(pl.any_horizontal(part.is_not_null() for part in parts)).then(joined)


def _differs(raw: pl.DataFrame, entry: Mapping[str, Any]) -> pl.Expr:
    """Whether chosen and rejected are whole conversations that do not share their beginning."""
    pair = [source_of(entry[role]) for role in ("chosen", "rejected") if role in entry]
    if len(pair) < 2 or not all("last_of" in source for source in pair):
        return pl.lit(False)
    before = [_messages(s, raw.schema[s["last_of"]]).list for s in pair]
    heads = [part.head(part.len() - pl.min_horizontal(part.len(), 1)) for part in before]
    return (heads[0] != heads[1]).fill_null(False)


def _number(raw: pl.DataFrame, kind: str, source: Mapping[str, Any]) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """The value of a judgment, the code of what is wrong with it, and the detail."""
    if "value" in source:
        return pl.lit(float(source["value"]), dtype=pl.Float64), _TEXT, _TEXT
    path, name = source["from"], "preference" if kind == "comparison" else kind
    cell, dtype = pl.col(path), raw.schema[path]
    if dtype.is_nested():
        raise ValueError(f"{name}: {path!r} is {dtype}; say which part of it holds the value, as in {path}[0].name")
    detail = pl.format("{}={}", pl.lit(path), cell.cast(pl.String))
    if "map" in source:
        known, numbers = _known(source["map"], dtype), [v if v is None else float(v) for v in source["map"].values()]
        key = _key(cell, dtype)
        value = key.replace_strict(known, numbers, default=None, return_dtype=pl.Float64)
        left_out = pl.when(cell.is_not_null() & value.is_null()).then(pl.lit(_LEFT_OUT))
        code = pl.when(cell.is_not_null() & ~key.is_in(known)).then(pl.lit("value.unmapped")).otherwise(left_out)
    else:
        text = cell.str.strip_chars() if dtype == pl.String else cell
        value = text.cast(pl.Float64, strict=False)
        code = pl.when(cell.is_not_null() & value.is_null()).then(pl.lit(f"{name}.not_a_number"))
        if kind == "label":
            code = pl.when(~value.is_in([0.0, 1.0])).then(pl.lit("value.unmapped")).otherwise(code)
    value = -value if source.get("polarity") == "lower_is_better" else value
    return value, code, detail


def _note(raw: pl.DataFrame, source: Mapping[str, Any]) -> pl.Expr:
    """A text about the row: who judged, what kind of prompt; a value that is not in its map stays as it is."""
    if "value" in source:
        return pl.lit(source["value"], dtype=pl.String)
    cell = pl.col(source["from"])
    if "map" not in source:
        return cell.cast(pl.String)
    dtype, texts = raw.schema[source["from"]], list(source["map"].values())
    return _key(cell, dtype).replace_strict(
        _known(source["map"], dtype), texts, default=cell.cast(pl.String), return_dtype=pl.String
    )


def _key(cell: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return cell.cast(pl.Float64) if dtype.is_numeric() else cell


def _known(values: Mapping[Any, Any], dtype: pl.DataType) -> list[Any]:
    """The keys of a map as values of the column: YAML may write 1, 1.0, "1", true or "true".

    Raises:
        ValueError: a key that no cell of such a column can be.
    """
    try:
        if dtype.is_numeric():
            return [float(key) for key in values]
        if dtype == pl.Boolean:
            return [{"true": True, "false": False}[str(key).lower()] for key in values]
    except (KeyError, ValueError):
        raise ValueError(f"map: its keys are {', '.join(map(str, values))}, but the column is {dtype}") from None
    return [str(key).lower() if isinstance(key, bool) else str(key) for key in values]


assert no_rows().schema["prompt"] == MESSAGES
