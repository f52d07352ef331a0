"""How values are shown: number formats, texts that may hold anything, and the template environment."""

import json
import math
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

NOTHING = "–"
# What HTML, XML and YAML forbid: C0 and C1 controls, lone surrogates, noncharacters. A sign stands for each.
_UNSHOWABLE = {
    **{c: chr(0x2400 + c) for c in range(0x20) if chr(c) not in "\t\n"},
    0x7F: "\u2421",
    **dict.fromkeys((*range(128, 160), *range(55296, 57344), *range(64976, 65008), 65534, 65535), "�"),
}
# Directional marks turn the page around them; a reader of data wants to see that they are there.
_DIRECTIONAL = {c: f"⟨U+{c:04X}⟩" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SIGNS = str.maketrans(_UNSHOWABLE | _DIRECTIONAL)


class Shown(NamedTuple):
    """A text as it is displayed.

    Attributes:
        text: the text, cut to the limit.
        head: its beginning, where the text is to be folded; else empty.
        total: characters of the whole text.
        cut: whether `text` is not the whole.
    """

    text: str
    head: str
    total: int
    cut: bool


def clean(text: str) -> str:
    """`text` without anything that a page cannot hold; every replaced character stays visible."""
    return text.replace("\r\n", "\n").translate(_SIGNS)


def shown(text: Any, limit: int = 2000, fold: int = 420) -> Shown:
    """A text of any size and content, made fit to be seen.

    Args:
        text: what to show; None is the empty text.
        limit: characters that are shown at most.
        fold: texts longer than this are folded after about as many characters.
    """
    whole = "" if text is None else str(text)
    return Shown(
        text=clean(whole[:limit]),
        head=clean(whole[:fold].rstrip()) if len(whole) > fold * 1.25 else "",
        total=len(whole),
        cut=len(whole) > limit,
    )


def label(text: Any, limit: int = 64) -> str:
    """A name on one line, short enough for a table."""
    line = " ".join(clean("" if text is None else str(text)[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def model_name(reference: Any) -> str:
    """A model's name from its reference: {path, gguf_file?, revision?}, or a text; of a run's model, the run's.

    >>> model_name({"path": "/data/.rlhf/runs/world-sft/dc4b1eb213ce57f6/model"})
    'the policy of world-sft (dc4b1eb213ce57f6)'
    """
    if not isinstance(reference, dict):
        return label(reference, 120)
    if made := re.search(r"(?:^|/)runs/([^/]+)/([0-9a-f]{16})/model$", str(reference.get("path"))):
        return label(f"the policy of {made[1]} ({made[2]})", 120)
    parts = [reference.get("path"), reference.get("gguf_file")]
    revision = f" at {reference['revision']}" if reference.get("revision") else ""
    return label("/".join(str(part) for part in parts if part) + revision, 120)


def count(n: Any) -> str:
    """A whole number with thousands separators."""
    return NOTHING if n is None else f"{int(n):,}".replace("-", "−")


def figure(x: Any) -> str:
    """A number with about three digits after the first, and thousands separators."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return NOTHING if x is None else label(x)
    if isinstance(x, int):
        return count(x)
    if not math.isfinite(x):
        return str(x).replace("-", "−")
    if x == int(x) and abs(x) < 1e9:
        return count(x)
    size = abs(x)
    if size and (size < 1e-3 or size >= 1e9):
        return f"{x:.2e}".replace("e-0", "e−").replace("e-", "e−").replace("e+0", "e").replace("-", "−")
    digits = 0 if size >= 10_000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{x:,.{digits}f}".replace("-", "−")


def short(x: float) -> str:
    """A number for an axis: no digit more than it needs."""
    if x and (abs(x) < 1e-3 or abs(x) >= 1e6):
        return re.sub(r"e([+-])0*(\d)", lambda m: f"e{'−' if m[1] == '-' else ''}{m[2]}", f"{x:.2g}").replace("-", "−")
    return f"{x:,.4f}".rstrip("0").rstrip(".").replace("-", "−") if x != int(x) else count(x)


def percent(share: float | None) -> str:
    """A share of one, as per cent; what is not nothing never reads as 0, what is not all never as 100."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share * 100:.1f} %"


def points(share: float) -> str:
    """A share, or a difference of two, in hundredths and without its sign of per cent."""
    return f"{share * 100:.1f}".replace("-", "−")


def size(n: Any) -> str:
    """Bytes, in the unit that fits."""
    if n is None:
        return NOTHING
    value, unit = float(n), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def duration(seconds: Any) -> str:
    """Seconds, as a person says them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def when(created: Any) -> str:
    """An ISO time in UTC, to the minute."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$", r"\1 \2 UTC", label(created))


def listed(words: Iterable[Any]) -> str:
    """a, b and c."""
    names = [label(word) for word in words]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def plural(n: int, one: str, many: str = "") -> str:
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def scalar(text: Any) -> str:
    """A string as a YAML scalar, safe whatever is in it."""
    return json.dumps(label(text, 300), ensure_ascii=False)


def cell(text: Any) -> str:
    """A text within Markdown, on one line: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", label(text, 2000)).replace("<", "&lt;").replace(">", "&gt;")


FILTERS = [shown, label, model_name, count, figure, short, percent, points, size, duration, when, listed, scalar, cell]


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(name: str) -> str | None:
    path = resources.files("rlhf_data.report") / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


@cache
def environment(*, html: bool = True) -> Environment:
    """The templates beside this file; in pages every value is escaped, in Markdown `cell` does it."""
    made = Environment(
        loader=FunctionLoader(_source),
        autoescape=html,
        undefined=StrictUndefined,
        finalize=_finalize if html else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({each.__name__: each for each in FILTERS})
    made.globals["plural"] = plural
    return made
