"""What each rule is, in words for a terminal and as docs/rules.md: `python -m rlhf_data.whatif.page` writes the page.

Everything comes from the rules' signatures and docstrings, and the pictures from the rules themselves, so the page
cannot say anything else than the code.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from rlhf_data import rules
from rlhf_data.report.lines import in_words, svg
from rlhf_data.whatif.ask import Asked
from rlhf_data.whatif.curves import curve

HEAD = """# Rules

Written by `python -m rlhf_data.whatif.page` from the code of `rlhf_data/rules`; do not edit.

Every rule is a pair of coefficients: −∇L = w₊ ∇log π(y₊|x) − w₋ ∇log π(y₋|x), or w ∇log π(y|x) for single completions.
`rlhf-data rules NAME` shows one in a terminal, `rlhf-data weights SNAPSHOT --rules NAME` its weights over your data,
`rlhf-data report SNAPSHOT --rules A,B` where the gradient of each would come from. `rlhf_data.rule("NAME")` is the
rule.

{curves}

*weights* says how they move with the log-ratio: constant, soft, or cut off at once (a hard clip, at so many nats).
*batch* marks rules whose weights of a row depend on the other rows of a step.
"""
CURVES = """The pictures show the weights over the log-ratio margin of a pair (half gained by the chosen, half lost by
the rejected completion) or over the log-ratio of a completion, in nats; at 0 the policy is its reference. Completions
are of 50 tokens and −100 nats under the reference; margin and preference are 1; good means label true and reward 1, bad
label false and reward −1; a rule that looks at its batch sees this row, or the good and the bad one, alone."""


class Parameter(NamedTuple):
    name: str
    default: Any
    allowed: str
    about: str


class About(NamedTuple):
    """A rule as its docstring and its signature tell it.

    Attributes:
        name: as in specs.
        family: the module of `rules` that holds it.
        table: "paired" or "unpaired".
        first: what it does, one sentence.
        body: what follows, the formula as an indented block.
        formula: the lines of that block.
        needs: quantity → what it is.
        columns: columns of a snapshot that must be filled for it.
        parameters: the hyperparameters.
        returns: the range of its weights.
        source: where it comes from.
        batch: whether a row's weight depends on other rows.
    """

    name: str
    family: str
    table: str
    first: str
    body: str
    formula: list[str]
    needs: dict[str, str]
    columns: tuple[str, ...]
    parameters: list[Parameter]
    returns: str
    source: str
    batch: bool


def about(name: str) -> About:
    """A rule, read off its code.

    Raises:
        ValueError: no such rule.
    """
    table = rules.table(name)  # raises for a name that is none
    function = rules.RULES[name]
    first, body, sections = _parts(inspect.getdoc(function) or "")
    said = _arguments(sections.get("Args", ""))
    signature = inspect.signature(function).parameters
    return About(
        name=name,
        family=function.__module__.rpartition(".")[2],
        table=table,
        first=first,
        body=body,
        formula=[line.strip() for line in body.splitlines() if line.startswith("    ")],
        needs={need: said.get(need, "") for need in rules.needs(name)},
        columns=rules.columns(name),
        parameters=[
            Parameter(key, default, _allowed(signature[key].annotation), said.get(key, ""))
            for key, default in rules.parameters(name).items()
        ],
        returns=" ".join(sections.get("Returns", "").split()),
        source=" ".join(sections.get("Source", "").split()),
        batch=rules.averages_over_batch(name),
    )


def as_dict(one: About) -> dict[str, Any]:
    """The same for JSON."""
    return {**one._asdict(), "parameters": {p.name: p._asdict() for p in one.parameters}, "curve": _shape(one.name)}


def in_terminal(one: About) -> str:
    """The whole of a rule as text."""
    lines = [f"{one.name} · {one.table}{' · looks at the whole batch' if one.batch else ''}", "", one.first]
    if one.body:
        lines += ["", one.body]
    lines += ["", "needs", *_aligned(one.needs)]
    if one.columns:
        lines += ["", "columns that must be filled", f"  {', '.join(one.columns)}"]
    lines += ["", "parameters", *_aligned({p.name: _parameter_words(p) for p in one.parameters}, nothing="none")]
    lines += ["", f"gives  {one.returns}", f"as the policy moves  {_shape(one.name)}", f"source  {one.source}"]
    return "\n".join(lines)


def listed(everything: list[About]) -> list[str]:
    """One rule after the other: name, table, first sentence; formula; parameters."""
    width = max(len(one.name) for one in everything)
    lines = []
    for one in everything:
        parameters = ", ".join(f"{p.name}={p.default}" for p in one.parameters)
        lines.append(f"{one.name:<{width}} {one.table:<9} {one.first}")
        lines += [f"{'':<{width}} {line}" for line in one.formula]
        lines.append(f"{'':<{width}} needs {', '.join(one.needs)}; {parameters or 'no parameters'}")
        lines.append(f"{'':<{width}} {one.source}")
    return lines


def page() -> str:
    """docs/rules.md."""
    everything = [about(name) for name in rules.RULES]
    parts = [HEAD.format(curves=CURVES)]
    for family in dict.fromkeys(one.family for one in everything):
        members = [one for one in everything if one.family == family]
        module = sys.modules[f"{rules.__name__}.{family}"]
        parts.append(f"## {family.replace('_', ' ').capitalize()}\n\n{_first_sentence(module.__doc__ or '')}\n")
        parts.append("| rule | table | batch | weights | |\n| --- | --- | --- | --- | --- |")
        parts += [
            f"| [`{one.name}`](#{_anchor(one.name)}) | {one.table} | {'batch' if one.batch else ''} "
            f"| {_shape(one.name)} | {_cell(one.first)} |"
            for one in members
        ]
        parts.append("")
        parts += [_section(one) for one in members]
    return "\n".join(parts).rstrip() + "\n"


def pictures() -> dict[str, str]:
    """File name → SVG of each rule that has a curve."""
    drawn = {name: curve(Asked(name, name, {})) for name in rules.RULES}
    return {f"{name}.svg": svg(found, name) for name, found in drawn.items() if found}


def write(docs: Path) -> None:
    """Write rules.md and rules/*.svg into `docs`; pictures of rules that are gone are removed."""
    (docs / "rules").mkdir(exist_ok=True)
    made = pictures()
    for old in (docs / "rules").glob("*.svg"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (docs / "rules" / name).write_text(text, encoding="utf-8")
    (docs / "rules.md").write_text(page(), encoding="utf-8")


def _section(one: About) -> str:
    lines = [f"### {one.name}", "", one.first, ""]
    if one.body:
        lines += [_fenced(one.body), ""]
    if curve(Asked(one.name, one.name, {})):
        lines += [f"![weights of {one.name}: {_shape(one.name)}](rules/{one.name}.svg)", ""]
    lines += [f"- **{one.table}**{', looks at the whole batch' if one.batch else ''}; gives {_lower(one.returns)}"]
    lines += [f"- needs {', '.join(f'`{need}`' for need in one.needs)}"]
    if one.columns:
        lines[-1] += f" (columns {', '.join(f'`{name}`' for name in one.columns)})"
    lines += [f"- `{p.name}` = {p.default}: {_parameter_words(p, default=False)}" for p in one.parameters]
    return "\n".join([*lines, f"- {one.source}", ""])


def _parts(text: str) -> tuple[str, str, dict[str, str]]:
    """First sentence, body, and the sections Args, Returns and Source of a docstring."""
    first, _, rest = text.partition("\n\n")
    rest = rest.split(">>>")[0]
    found = re.split(r"^(Args|Returns|Raises|Source):", rest, flags=re.MULTILINE)
    sections = dict(zip(found[1::2], found[2::2], strict=True))
    return " ".join(first.split()), found[0].strip("\n"), sections


def _arguments(text: str) -> dict[str, str]:
    """Name → what it is, of an Args section."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def _allowed(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    return " and ".join(getattr(annotation, "__metadata__", ())) or "any number"


def _parameter_words(one: Parameter, *, default: bool = True) -> str:
    return (f"= {one.default} ({one.allowed}): " if default else f"{one.allowed}; ") + (one.about or "")


def _aligned(pairs: dict[str, str], nothing: str = "") -> list[str]:
    width = max((len(name) for name in pairs), default=0)
    return [f"  {name:<{width}}  {text}".rstrip() for name, text in pairs.items()] or [f"  {nothing}"]


def _shape(name: str) -> str:
    found = curve(Asked(name, name, {}))
    return in_words(found) if found else "known in training only"


def _fenced(body: str) -> str:
    """Indented blocks as code, the rest as it stands."""
    blocks = re.split(r"\n\n+", body)
    return "\n\n".join(
        f"```text\n{inspect.cleandoc(block)}\n```" if block.startswith("    ") else " ".join(block.split())
        for block in blocks
    )


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]", "", name.lower())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs")
