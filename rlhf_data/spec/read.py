"""Read specs: YAML 1.2 → variables → overrides → models, with the line of every key."""

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from rlhf_data.spec import sections
from rlhf_data.spec.problems import Path, Problem, SpecError, did_you_mean, dotted

Lines = dict[Path, int]
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")


def read(
    file: FilePath, *, variables: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> tuple[sections.Spec, Lines]:
    """A spec and the line of each of its keys.

    Args:
        file: the YAML file.
        variables: values for ${NAME}, before the environment's; numbers too, where ${NAME} is all and has no quotes.
        overrides: dotted path → value as YAML, such as {"train.beta": "0.2"}.

    Raises:
        SpecError: everything that is wrong with its form.
    """
    tree, lines = _parse(file)
    problems: list[Problem] = []
    tree = _substitute(tree, (), {**os.environ, **(variables or {})}, lambda path, what: problems.append(
        Problem(str(file), line_of(lines, path), dotted(path), what)
    ))  # fmt: skip
    for key, value in (overrides or {}).items():
        _override(tree, key, value)
    problems += _out_of_order(str(file), lines)
    try:
        spec = sections.Spec.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(str(file), lines, e) for e in error.errors(include_url=False)]
        raise SpecError(problems) from None
    if problems:
        raise SpecError(problems)
    return spec, lines


def read_all(
    place: FilePath, *, variables: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> dict[FilePath, tuple[sections.Spec, Lines]]:
    """The spec of a file, or all specs of a folder in the order of their references to each other.

    Raises:
        SpecError: all problems of all files; two specs of one name; references in a circle.
    """
    if not place.exists():
        raise SpecError([Problem(str(place), 0, "", "no such file or folder")])
    files = sorted([*place.glob("*.yaml"), *place.glob("*.yml")]) if place.is_dir() else [place]
    if not files:
        raise SpecError([Problem(str(place), 0, "", "no *.yaml in this folder")])
    read_specs: dict[FilePath, tuple[sections.Spec, Lines]] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            read_specs[file] = read(file, variables=variables, overrides=overrides)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return {file: read_specs[file] for file in _in_order(read_specs)}


def runs_wanted(spec: sections.Spec) -> dict[str, Path]:
    """Names of the specs whose runs this spec starts from, each with the first place that says so."""
    models: dict[Path, dict[str, Any]] = {}
    if spec.rate.reward_model is not None:
        models["rate", "reward_model"] = spec.rate.reward_model
    for place, model in spec.score.models.items() if spec.score is not None else ():
        models["score", *place.split(".")] = model
    for name, source in spec.sources.items():
        if source.generate is not None:
            models["sources", name, "generate", "policy"] = source.generate.policy
    if spec.train is not None:
        models["train", "model"] = spec.train.model
        if spec.train.rounds is not None and spec.train.rounds.rate.reward_model is not None:
            models["train", "rounds", "rate", "reward_model"] = spec.train.rounds.rate.reward_model
    if spec.evaluate is not None and spec.evaluate.reward_model is not None:
        models["evaluate", "reward_model"] = spec.evaluate.reward_model
    return {model["run"]: path for path, model in reversed(models.items()) if "run" in model}


def snapshots_wanted(spec: sections.Spec) -> dict[str, Path]:
    """Names of the other specs whose snapshots this spec reads, each with the first place that says so."""
    found: dict[str, Path] = {}
    for name, source in spec.sources.items():
        if source.snapshot is not None:
            found.setdefault(source.snapshot.partition("@")[0], ("sources", name, "snapshot"))
        if source.generate is not None:
            prompts: Path = ("sources", name, "generate", "prompts", "snapshot")
            found.setdefault(source.generate.prompts.snapshot.partition("@")[0], prompts)
    for k, part in enumerate((spec.train.blend if spec.train is not None else None) or ()):
        if part.snapshot != spec.name:
            found.setdefault(part.snapshot, ("train", "blend", k, "snapshot"))
    return found


def _wanted(spec: sections.Spec) -> set[str]:
    return {*runs_wanted(spec), *snapshots_wanted(spec)}


def line_of(lines: Lines, path: Path) -> int:
    """The line of a key, or of the nearest key above it that stands in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _parse(file: FilePath) -> tuple[dict[str, Any], Lines]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    def broken(what: str, line: int = 0) -> SpecError:
        return SpecError([Problem(str(file), line, "", what)])

    try:
        reader = YAML(typ="rt")
        reader.preserve_quotes = True
        loaded = reader.load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise broken(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise broken(f"is not UTF-8 text (byte {error.start})") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context).split())
        if mark and mark.buffer and "${" in mark.buffer.splitlines()[mark.line]:
            what += "; a value with ${NAME} in {…} or […] needs quotes"
        raise broken(f"is not valid YAML: {what}", mark.line + 1 if mark else 0) from None
    except Exception as error:  # ruamel raises its own kinds for odd characters
        raise broken(f"is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise broken("must be a mapping of sections: version, name, sources, …", 1)
    lines: Lines = {}
    try:
        return _plain(loaded, (), lines), lines
    except _TagError as error:
        raise broken(f"the tag {error} has no meaning here; leave it out", line_of(lines, error.path)) from None
    except RecursionError:
        raise broken("is not valid YAML: an alias holds itself") from None


class _Quoted(str):
    """Text in quotes, which stays text whatever it looks like."""


class _TagError(Exception):
    """A value with a YAML tag such as !!python/name; `path` is its place."""

    def __init__(self, tag: str, path: Path) -> None:
        super().__init__(tag)
        self.path = path


def _plain(node: Any, path: Path, lines: Lines) -> Any:
    """Builtins (and `_Quoted`) instead of ruamel's round-trip types; the lines of keys go into `lines`."""
    from ruamel.yaml.scalarstring import ScalarString

    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag is not None:
        raise _TagError(str(tag), path)
    position: Any = getattr(node, "lc", None)
    if isinstance(node, dict):
        for key in node:
            if key in (position.data or {}):  # what `<<` brought in stands elsewhere
                lines[(*path, key)] = position.key(key)[0] + 1
        words = {key: str(key) if isinstance(key, ScalarString) else key for key in node}
        return {words[key]: _plain(value, (*path, key), lines) for key, value in node.items()}
    if isinstance(node, list):
        for k in range(len(node)):
            lines[(*path, k)] = position.item(k)[0] + 1
        return [_plain(value, (*path, k), lines) for k, value in enumerate(node)]
    for kind, builtin in ((bool, bool), (int, int), (float, float), (ScalarString, _Quoted), (str, str)):
        if isinstance(node, kind):
            return builtin(node)
    return node


def _substitute(node: Any, path: Path, variables: Mapping[str, str], report: Any) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(value, (*path, key), variables, report) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, (*path, k), variables, report) for k, value in enumerate(node)]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        name, default = match.groups()
        if variables.get(name):
            return variables[name]
        if default is None:
            report(path, f"the variable {name} is not set; give --var {name}=VALUE or export {name}")
            return match.group(0)
        return default

    text = str(VARIABLE.sub(value_of, node))
    return text if isinstance(node, _Quoted) or not VARIABLE.fullmatch(node) else _number_or_text(text)


def _number_or_text(text: str) -> int | float | bool | str:
    """What YAML reads there, if it is a number, true or false."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return text
    return value if isinstance(value, int | float) else text


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(_number_or_text(value), str)


def _override(tree: dict[str, Any], key: str, value: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    labels = {"true": True, "false": False}  # which are keys too
    parts: list[Any] = [labels.get(part.lower(), part) for part in key.split(".")]
    *parents, last = parts
    node: Any = tree
    for parent in parents:
        node = node[_place(node, parent, key)] if isinstance(node, list) else node.setdefault(parent, {})
        if not isinstance(node, dict | list):
            raise SpecError([Problem("--set", 0, key, f"{parent} is neither a mapping nor a list")])
    if isinstance(node, list):
        last = _place(node, last, key)
    try:
        node[last] = YAML(typ="safe").load(value)
    except YAMLError:
        raise SpecError([Problem("--set", 0, key, f"{value!r} is not a value in YAML")]) from None


def _place(entries: list[Any], part: Any, key: str) -> int:
    if str(part).isdecimal() and int(part) < len(entries):
        return int(part)
    raise SpecError([Problem("--set", 0, key, f"{part} is no entry of a list of {len(entries)}, which count from 0")])


def _problem(file: str, lines: Lines, error: Any) -> Problem:
    path: Path = tuple(error["loc"])
    what = error["msg"]
    if error["type"] == "extra_forbidden":
        what = f"unknown key; {did_you_mean(str(path[-1]), _known_keys(path[:-1]))}"
    elif error["type"] == "missing":
        what = f"missing; add it (a {_kind(path)})" if _kind(path) else "missing; add it"
    elif error["type"] != "spec":
        what = f"{_must(error)}, not {error['input']!r}"[:300]
        if error["type"] in ("int_type", "float_type", "bool_type") and _is_number(error["input"]):
            what += "; leave out its quotes, and give a ${NAME} a line of its own, outside of {…} and […]"
    return Problem(file, line_of(lines, path), dotted(tuple(p for p in path if p != "[key]")), what)


def _must(error: Any) -> str:
    """What pydantic says, in the words of someone who writes YAML."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("model_type", "dict_type"):
        return "must be a mapping, as in {KEY: VALUE}"
    if kind == "too_short":
        return f"must hold {context['min_length']} or more"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "too_long":
        return f"must hold no more than {context['max_length']}"
    if kind == "string_type":
        return "must be text (in quotes, if it looks like something else)"
    if kind == "string_pattern_mismatch":
        return "must be made of lower-case letters, digits, dots, - and _, a letter or digit first"
    simple = {
        "list_type": "must be a list, as in [A, B]",
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "invalid_key": "a key must be text (in quotes, if it looks like something else)",
    }
    return simple.get(kind) or error["msg"].replace("Input should", "must")


def _out_of_order(file: str, lines: Lines) -> list[Problem]:
    """The first section of a file that stands before one that belongs above it."""
    fixed = list(sections.Spec.model_fields)
    written = [path[0] for path in lines if len(path) == 1 and path[0] in fixed]
    for section, following in pairwise(written):
        if fixed.index(str(following)) < fixed.index(str(section)):
            order = ", ".join(key for key in fixed if key in written)
            what = f"the section {following} belongs above {section}; the order is: {order}"
            return [Problem(file, lines[(following,)], "", what)]
    return []


def _known_keys(path: Path) -> list[str]:
    """The keys of the section at `path`."""
    model: Any = sections.Spec
    for part in path:
        if isinstance(part, int) or not hasattr(model, "model_fields") or part not in model.model_fields:
            continue  # the name of a source, or a place in a list
        model = _section_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _section_in(annotation: Any) -> Any:
    """The section class inside an annotation such as dict[str, Source] or Score | None."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return annotation
    found = [_section_in(part) for part in getattr(annotation, "__args__", ())]
    return next((section for section in found if section is not None), None)


def _kind(path: Path) -> str:
    return {"sources": "mapping of names to sources", "shape": "section that says to: paired or to: unpaired"}.get(
        str(path[-1]), ""
    )


def _in_order(specs: dict[FilePath, tuple[sections.Spec, Lines]]) -> list[FilePath]:
    named: dict[str, FilePath] = {}
    for file, (spec, lines) in specs.items():
        if spec.name in named:
            what = f"{spec.name!r} is the name of {named[spec.name]} too; give each spec its own"
            raise SpecError([Problem(str(file), line_of(lines, ("name",)), "name", what)])
        named[spec.name] = file
    ordered: list[FilePath] = []
    waiting = dict(specs)
    while waiting:
        left = {spec.name for spec, _ in waiting.values()}
        ready = [file for file, (spec, _) in waiting.items() if not _wanted(spec) & left]
        if not ready:
            file, (spec, _) = next(iter(waiting.items()))
            what = (
                f"the specs {', '.join(s.name for s, _ in waiting.values())} start from each other's runs "
                "or snapshots in a circle"
            )
            raise SpecError([Problem(str(file), 1, "", what)])
        for file in ready:
            ordered.append(file)
            del waiting[file]
    return ordered
