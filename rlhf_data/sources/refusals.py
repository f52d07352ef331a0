"""What no later step could use: the refusals that hold for every source."""

import polars as pl

from rlhf_data.sources.observations import OBSERVATION

_ROLES = ["system", "user", "assistant"]
# Sums of larger numbers, and their differences, would overflow in a later step, far from where they came in.
_LARGEST = 1e300
_VALUED = {"comparison": "verdict", "rating": "rating", "label": "label", "rank": "rank"}


def observations(rows: pl.DataFrame) -> pl.DataFrame:
    """An adapter's rows with all columns of an observation, in order; a prompt that is a text becomes a user turn."""
    if rows.schema["prompt"] == pl.String:
        turn = pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.col("prompt")))
        rows = rows.with_columns(prompt=pl.when(pl.col("prompt").is_not_null()).then(turn))
    columns = (
        pl.col(name).cast(dtype) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in OBSERVATION.items()
    )
    return rows.select(columns)


def refusals(rows: pl.DataFrame) -> pl.DataFrame:
    """The observations with `code` and `detail`; both are null where an observation is sound.

    The order matters: two equal answers are `pair.identical` before they are a tie or a missing verdict.
    """
    value, compared = pl.col("value"), pl.col("kind") == "comparison"
    rules = [
        *_prompt_rules(),
        ("completion.missing", pl.col("completion").is_null() | (compared & pl.col("other").is_null()), None),
        ("text.nul", pl.any_horizontal(_has_nul("completion"), _has_nul("other")), "an answer has a NUL character"),
        ("pair.identical", compared & (pl.col("completion") == pl.col("other")), None),
        *((f"{word}.missing", (pl.col("kind") == kind) & value.is_null(), None) for kind, word in _VALUED.items()),
        ("value.not_finite", ~value.is_finite(), value),
        ("value.out_of_range", value.abs() > _LARGEST, value),
        ("preference.out_of_range", compared & ~value.is_between(0, 1), value),
        ("label.out_of_range", (pl.col("kind") == "label") & ~value.is_in([0.0, 1.0]), value),
        ("position.unknown", ~pl.col("position").is_in(["first", "second"]), pl.col("position")),
    ]
    code, detail = pl.when(False).then(None), pl.when(False).then(None)
    for name, condition, shown in rules:
        text = shown.cast(pl.String) if isinstance(shown, pl.Expr) else pl.lit(shown, dtype=pl.String)
        code, detail = code.when(condition).then(pl.lit(name)), detail.when(condition).then(text)
    return rows.with_columns(code=code.otherwise(None).cast(pl.String), detail=detail.otherwise(None).cast(pl.String))


def _prompt_rules() -> list[tuple[str, pl.Expr, pl.Expr | str | None]]:
    prompt = pl.col("prompt")
    role, content = pl.element().struct.field("role"), pl.element().struct.field("content")
    unknown = prompt.list.eval(role.filter(~role.is_in(_ROLES)))
    return [
        ("prompt.missing", prompt.is_null() | (prompt.list.len() == 0), None),
        ("prompt.role", prompt.list.eval(role.is_null()).list.any(), "a message without a role"),
        ("prompt.role", unknown.list.len() > 0, unknown.list.join(", ")),
        ("prompt.content", prompt.list.eval(content.is_null()).list.any(), "a message without content"),
        ("prompt.empty", prompt.list.eval(content.str.strip_chars() == "").list.all(), None),
        ("text.nul", prompt.list.eval(content.str.contains("\x00", literal=True)).list.any(), "in the prompt"),
        ("prompt.last_turn", prompt.list.last().struct.field("role") == "assistant", "it ends with the assistant"),
    ]


def _has_nul(column: str) -> pl.Expr:
    return pl.col(column).str.contains("\x00", literal=True).fill_null(False)
