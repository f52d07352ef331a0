"""Curves of rules over the log-ratio: from numbers to the coordinates of a small SVG, and the SVG itself."""

from typing import Any, NamedTuple

from rlhf_data.report.curves import Tick, ticks
from rlhf_data.report.display import short

LEFT, RIGHT, TOP, BOTTOM = 52.0, 476.0, 12.0, 146.0
KINDS = {"w₊": "chosen", "w₋": "rejected", "w, good": "chosen", "w, bad": "rejected", "w": "one"}
COLOURS = {"chosen": "#3b7ea1", "rejected": "#c77b3b", "one": "#4477aa"}


class Line(NamedTuple):
    name: str
    kind: str
    path: str


class Lines(NamedTuple):
    """A rule's lines in the coordinates of a view box of 486 × 170; `cut` says that some of it lies beyond the axis."""

    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    zero: float | None
    clips: list[float]
    words: str
    cut: bool


def drawn(curve: dict[str, Any]) -> Lines:
    """A curve of `whatif.curves`, ready to be drawn; lines that lie on each other are drawn as one."""
    x, named = curve["x"], _merged(curve["lines"])
    bottom, top, cut = _span(x, list(curve["lines"].values()))

    def at_x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - x[0]) / (x[-1] - x[0]), 1)

    def at_y(value: float) -> float:
        inside = min(max(value, bottom), top)
        return round(BOTTOM - (BOTTOM - TOP) * (inside - bottom) / (top - bottom), 1)

    bottom_and_top = (at_y(bottom), at_y(top)) if cut else ()
    lines = [
        Line(
            name, KINDS.get(name, "one"), _path([(at_x(a), at_y(b)) for a, b in zip(x, y, strict=True)], bottom_and_top)
        )
        for name, y in named.items()
    ]
    return Lines(
        lines,
        [Tick(at_x(value), short(value)) for value in ticks(x[0], x[-1], 6)],
        [Tick(at_y(value), short(value)) for value in ticks(bottom, top, 4)],
        at_y(0.0) if bottom < 0 < top else None,
        [at_x(clip) for clip in curve["clips"]],
        in_words(curve),
        cut,
    )


def in_words(curve: dict[str, Any]) -> str:
    """Whether the weights are constant, let go softly, or are cut off at once, and where."""
    if curve["clips"]:
        return "hard clip at " + ", ".join(short(clip) for clip in curve["clips"])
    level = all(max(y) - min(y) <= 1e-9 * max(abs(v) for v in y) for y in curve["lines"].values() if any(y))
    return "constant" if level else "soft"


def svg(curve: dict[str, Any], title: str) -> str:
    """The same as a file of its own, on paper of its own, for documents that hold pictures by link."""
    made = drawn(curve)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 486 186" font-family="sans-serif" font-size="11">',
        f"<title>{title}: {made.words}</title>",
        '<rect width="486" height="186" fill="#fdfdfc"/>',
    ]
    for tick in made.y_ticks:
        parts.append(f'<path stroke="#dfe0dc" d="M{LEFT} {tick.at}H{RIGHT}"/>')
        parts.append(f'<text x="46" y="{tick.at + 3.5}" text-anchor="end" fill="#5d656e">{tick.words}</text>')
    for tick in made.x_ticks:
        parts.append(f'<text x="{tick.at}" y="163" text-anchor="middle" fill="#5d656e">{tick.words}</text>')
    for clip in made.clips:
        parts.append(f'<path stroke="#a04a12" stroke-dasharray="2 3" d="M{clip} {TOP}V{BOTTOM}"/>')
    for place, line in enumerate(made.lines):
        colour = COLOURS[line.kind]
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="1.8" d="{line.path}"/>')
        parts.append(f'<text x="{LEFT + 90 * place}" y="181" fill="{colour}">{line.name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _path(points: list[tuple[float, float]], ends: tuple[float, ...]) -> str:
    """The points as a path; what runs along an end of the axis, being beyond it, is left out."""
    kept = [
        (x, y)
        for k, (x, y) in enumerate(points)
        if not (y in ends and {points[max(k - 1, 0)][1], points[min(k + 1, len(points) - 1)][1]} <= {y})
    ]
    return "M" + "L".join(f"{x} {y}" for x, y in kept)


def _merged(lines: dict[str, list[float]]) -> dict[str, list[float]]:
    """w₊ and w₋ as one line where they are one."""
    if len(lines) == 2:
        (one, first), (other, second) = lines.items()
        if all(abs(a - b) <= 1e-9 * max(abs(a), abs(b)) for a, b in zip(first, second, strict=True)):
            return {f"{one} = {other}": first}
    return lines


def _span(x: list[float], lines: list[list[float]]) -> tuple[float, float, bool]:
    """What the axis covers, 0 included; a line that runs away is cut, or nothing else could be seen."""
    low, high = min(map(min, lines)), max(map(max, lines))
    near = max(abs(y) for line in lines for at, y in zip(x, line, strict=True) if abs(at) <= 0.5)
    cut = near > 0 and max(-low, high) > 20 * near
    if cut:
        low, high = max(low, -4 * near), min(high, 4 * near)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * (high - low) or 1.0
    return (low - room if low < 0 else low), high + room, cut
