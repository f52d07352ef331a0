"""What is wrong with specs beyond their form: files, columns, expressions, rules, references; all of it at once."""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from rlhf_data import rules, tables
from rlhf_data.clean import filter as clean_filter
from rlhf_data.spec.problems import Path, Problem, SpecError, did_you_mean, dotted
from rlhf_data.spec.read import Lines, line_of, runs_wanted, snapshots_wanted
from rlhf_data.spec.sections import Blend, Clean, Source, Spec, Train

if TYPE_CHECKING:
    from rlhf_data.sources.readers import Raw

Found = tuple[Path, str]


class Workspace(Protocol):
    """What a check asks of a workspace."""

    @property
    def root(self) -> FilePath: ...

    def model_of(self, name: str) -> FilePath | None: ...

    def snapshot_of(self, name: str) -> FilePath | None: ...

    def versions_of(self, name: str, version: str) -> list[FilePath]: ...


def check(specs: dict[FilePath, tuple[Spec, Lines]], workspace: Workspace) -> None:
    """Check specs together, before any data is read.

    Raises:
        SpecError: everything that is wrong, each with its file and line.
    """
    known = {spec.name: spec for spec, _ in specs.values()}
    found: list[Problem] = []
    for file, (spec, lines) in specs.items():
        for path, what in _problems(spec, known, workspace):
            found.append(Problem(str(file), line_of(lines, path), dotted(path), what))
    published: dict[FilePath, str] = {}
    for file, (spec, lines) in specs.items():
        first = published.setdefault(FilePath(spec.publish.to).resolve(), spec.name)
        if first != spec.name:
            what = f"{first} is published there too, and each would be the other's latest; give each a folder"
            found.append(Problem(str(file), line_of(lines, ("publish", "to")), "publish.to", what))
    if found:
        raise SpecError(found)


def _problems(spec: Spec, known: dict[str, Spec], workspace: Workspace) -> Iterator[Found]:
    names = set(known)
    for name, source in spec.sources.items():
        yield from _source(("sources", name), source)
        yield from _kept(("sources", name, "keep_columns"), source, spec)
    for k, operation in enumerate(spec.clean):
        yield from _clean(("clean", k), operation)
    if spec.weigh.weight.row is not None:
        types = tables.columns(f"{spec.shape.to}_rows")
        rows = {name: pl.String() if dtype == pl.Categorical else dtype for name, dtype in types.items()}
        yield from _expression(("weigh", "weight", "row"), spec.weigh.weight.row, rows, wanted=None)
    if spec.weigh.weight.label is not None and spec.shape.to == "paired":
        yield ("weigh", "weight", "label"), "the paired table has no label; leave it out, or shape to: unpaired"
    yield from _polarity(spec)
    yield from _mix(spec)
    yield from _other_specs(spec, names, workspace)
    yield from _versions(spec, workspace)
    for path, model in _models(spec):
        if "path" in model:
            yield from _model(path, model)
    if spec.rate.reward_model is not None:
        yield from _tokens("rate", spec.rate)
    for part in ("score", "train"):
        section = getattr(spec, part)
        if section is not None:
            yield from _tokens(part, section)
    if spec.score is not None and spec.score.references and spec.shape.to == "paired":
        yield (
            ("score", "references"),
            "rules over pairs read one reference; leave it out, or shape to: unpaired",
        )
    if spec.train is not None:
        yield from _train(spec)
        for k, part in enumerate(spec.train.blend or ()):
            yield from _blended(("train", "blend", k), part, spec, known, workspace)
        yield from _moving(spec)
        if spec.train.lora is not None and _trains_a_head(spec.train.rule):
            yield ("train", "lora"), "an adapter would leave the reward model's new head as it is; leave it out"
        if spec.train.lora is not None and "adapter" in spec.train.model:
            yield (
                ("train", "lora"),
                "the model has an adapter already; start from one with it merged, such as {run: NAME}",
            )
    if spec.evaluate is not None and spec.train is None:
        yield ("evaluate",), "there is nothing to evaluate without train; add train or leave evaluate out"
    for part in ("rate", "evaluate"):
        yield from _verifier((part, "verifier"), getattr(getattr(spec, part), "verifier", None))
    if spec.evaluate is not None and not getattr(spec.split, spec.evaluate.split):
        yield (
            ("evaluate",),
            f"no rows are held out for {spec.evaluate.split}; add split: {{{spec.evaluate.split}: 0.1}}",
        )


def _other_specs(spec: Spec, names: set[str], workspace: Workspace) -> Iterator[Found]:
    """Runs and snapshots of other specs that are neither here nor in the workspace."""
    wanted = (
        ("run", runs_wanted(spec), workspace.model_of),
        ("snapshot", snapshots_wanted(spec), workspace.snapshot_of),
    )
    for what, named, known in wanted:
        for name in sorted(named):
            if name not in names and known(name) is None:
                hint = did_you_mean(name, names - {spec.name})
                other = f"give the folder of both specs, or {'run' if what == 'run' else 'build'} {name} first"
                yield (
                    named[name],
                    f"no spec named {name!r} here and no {what} of it in {workspace.root}; {hint}: {other}",
                )


def _versions(spec: Spec, workspace: Workspace) -> Iterator[Found]:
    """Versions of snapshots that are not there: a version that is named was built before."""
    for key, source in spec.sources.items():
        asked: list[tuple[Path, str]] = []
        if source.snapshot is not None:
            asked.append((("sources", key, "snapshot"), source.snapshot))
        if source.generate is not None:
            asked.append((("sources", key, "generate", "prompts", "snapshot"), source.generate.prompts.snapshot))
        for path, reference in asked:
            name, _, version = reference.partition("@")
            latest = workspace.snapshot_of(name) if version else None
            if latest is not None and len(workspace.versions_of(name, version)) != 1:
                there = ", ".join(sorted(mark.parent.name for mark in latest.parent.glob("[!.]*/_SUCCESS"))[-8:])
                yield path, f"{version!r} is the beginning of no one version in {latest.parent}; there are: {there}"


def _clean(path: Path, operation: Clean) -> Iterator[Found]:
    """Problems of a cleaning operation: its condition, its files, its words."""
    if operation.where is not None:
        yield from _expression((*path, "where"), operation.where, clean_filter.COLUMNS, wanted=pl.Boolean)
    if operation.against is not None:
        from rlhf_data.clean.contaminated import SUFFIXES
        from rlhf_data.sources.places import find_files

        try:
            found = find_files(operation.against)
        except ValueError as error:
            yield (*path, "against"), str(error)
            return
        for file in (file for named in found.values() for file in named if file.suffix.lower() not in SUFFIXES):
            yield (*path, "against"), f"cannot look for texts in {file}; use {', '.join(SUFFIXES)}"
    if operation.presidio is not None:
        for package in (name for name in ("presidio_analyzer", "spacy") if importlib.util.find_spec(name) is None):
            yield (*path, "presidio"), f"{package} is not installed: pip install 'rlhf_data[pii]'"
            return
        if importlib.util.find_spec(operation.presidio) is None:
            yield (*path, "presidio"), f"no spaCy model {operation.presidio!r} is installed; pip install it"
    elif operation.kinds is not None:
        from rlhf_data.clean.pii import KINDS

        for kind in (kind for kind in operation.kinds if kind not in KINDS):
            yield (*path, "kinds"), f"no kind {kind!r} of personal data; {did_you_mean(kind, KINDS)}"
    if operation.keep is not None:
        from rlhf_data.clean import language

        try:
            known = language.codes()
        except ModuleNotFoundError as error:
            yield path, str(error)
            return
        for code in (code for code in operation.keep if code not in known):
            yield (*path, "keep"), f"no language {code!r}; use codes of ISO 639, such as en, zh, de"


def _verifier(path: Path, name: str | None) -> Iterator[Found]:
    """A module that cannot be imported; whether it has the function is known once it runs."""
    module = name.partition(":")[0] if name else ""
    with suppress(ImportError, ValueError):
        if module and importlib.util.find_spec(module) is not None:
            module = ""
    if module:
        yield path, f"no module {module} can be imported; install it, or put it on PYTHONPATH"


def _polarity(spec: Spec) -> Iterator[Found]:
    """A scale is of the ratings after `polarity` has turned them round."""
    turned = [
        name for name, source in spec.sources.items() if "lower_is_better" in str((source.columns or {}).get("rating"))
    ]
    if turned and spec.rate.scale is not None and spec.rate.scale[0] >= 0:
        low, high = spec.rate.scale
        names = ", ".join(turned)
        yield ("rate", "scale"), f"polarity makes the ratings of {names} negative; write [{-high:g}, {-low:g}]"


def _mix(spec: Spec) -> Iterator[Found]:
    """What is said of sources that are not there, and of shares that cannot be counted."""
    from rlhf_data.weigh.weight import KEYS

    weigh = spec.weigh
    named: dict[Path, Any] = {("weigh", key): getattr(weigh, key) for key in ("keep", "rows", "share")}
    named["weigh", "weight", "source"] = weigh.weight.source
    for path, by_source in named.items():
        for unknown in (by_source or {}).keys() - spec.sources.keys():
            yield (*path, unknown), f"no source of this name; {did_you_mean(unknown, spec.sources)}"
    unnamed = spec.sources.keys() - (weigh.share or spec.sources).keys()
    if unnamed:
        yield ("weigh", "share"), f"says nothing of {', '.join(sorted(unnamed))}; name every source, 0 leaves one out"
    if weigh.of == "tokens" and spec.score is None and spec.train is None:
        yield ("weigh", "of"), "tokens are counted by the tokenizer of score or train, and the spec has neither"
    learnt = weigh.weight.table
    if learnt is not None and learnt.key not in KEYS[spec.shape.to]:
        known = ", ".join(KEYS[spec.shape.to])
        yield (
            ("weigh", "weight", "table", "key"),
            f"the {spec.shape.to} table has no {learnt.key}; write one of {known}",
        )
    if learnt is not None and not FilePath(learnt.path).is_file():
        yield (
            ("weigh", "weight", "table", "path"),
            f"no file {learnt.path} (a relative path starts at {FilePath.cwd()})",
        )
    if spec.expect.label_balance is not None and spec.shape.to == "paired":
        yield ("expect", "label_balance"), "the paired table has no label; leave it out, or shape to: unpaired"


def _models(spec: Spec) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every model that a spec names, with its place."""
    if spec.rate.reward_model is not None:
        yield ("rate", "reward_model"), spec.rate.reward_model
    for place, model in spec.score.models.items() if spec.score else ():
        yield ("score", *place.split(".")), model
    if spec.train is not None:
        yield ("train", "model"), spec.train.model
        if spec.train.rounds is not None and spec.train.rounds.rate.reward_model is not None:
            yield ("train", "rounds", "rate", "reward_model"), spec.train.rounds.rate.reward_model
    if spec.evaluate is not None and spec.evaluate.reward_model is not None:
        yield ("evaluate", "reward_model"), spec.evaluate.reward_model


def _source(path: Path, source: Source) -> Iterator[Found]:
    from rlhf_data import sources
    from rlhf_data.sources import mapping

    if source.generate is not None:
        yield from _generated((*path, "generate"), source)
        return
    known_adapter = source.adapter in sources.ADAPTERS
    if source.adapter is not None and not known_adapter:
        yield (
            (*path, "adapter"),
            f"no adapter named {source.adapter!r}; {did_you_mean(source.adapter, sources.ADAPTERS)}",
        )
    if source.snapshot is not None:
        yield from _published_options(path, source)
    elif known_adapter or source.adapter is None:
        for what in sources.check_options(source.adapter, source.options):
            yield (*path, "options"), what
        yield from _reader_options(path, source)
    for key in ("quote", "separator"):
        value = source.options.get(key, ",")
        if not isinstance(value, str) or len(value) > 1 or (key == "separator" and not value):
            yield (*path, "options", key), f"must be one character{', or empty for none' * (key == 'quote')}"
            return
    grammar = mapping.problems(source.columns) if source.columns is not None else []
    for where, what in grammar:
        yield (*path, "columns", *where), what
    if source.path is None:
        return
    try:
        named = _peek(source)
    except ValueError as error:
        yield (*path, "path"), str(error)
        return
    first = next(iter(named.values()))
    if known_adapter:
        assert source.adapter is not None
        yield from _adapter_tables(path, source.adapter, named)
    elif source.columns is not None and not grammar:
        if len(named) > 1:
            yield (*path, "columns"), f"columns map one table, not {', '.join(named)}; join them with sql"
            return
        for where, what in mapping.check_columns(source.columns, first):
            yield (*path, "columns", *where), what
    elif source.sql is not None:
        from rlhf_data.sources.sql import check_sql

        try:
            wrong = check_sql(source.sql, named)
        except AttributeError:  # DuckDB gives None for what selects nothing
            wrong = ["is no query; write SELECT … FROM raw"]
        for what in wrong:
            yield (*path, "sql"), " ".join(what.split("\n\nLINE")[0].split())
    elif source.adapter is None and not mapping.identity(first):
        yield (
            path,
            (
                f"nothing says what the columns mean; add adapter, columns or sql "
                f"(the file has {', '.join(first) or 'no columns: no record of it is a JSON object'})"
            ),
        )


def _kept(path: Path, source: Source, spec: Spec) -> Iterator[Found]:
    """Raw columns that are to be kept and are not there, are named twice, or would undo a masking."""
    from rlhf_data import sources
    from rlhf_data.sources import readers

    names = source.keep_columns or []
    for k, name in enumerate(names):
        if name.removeprefix(tables.KEPT) in [other.removeprefix(tables.KEPT) for other in names[:k]]:
            yield (*path, k), f"{name!r} is named twice; leave one out"
    if names and any(operation.op == "pii" and operation.do == "mask" for operation in spec.clean):
        yield path, "op pii masks texts only, so raw columns would be published unmasked; leave one of the two out"
    if source.path is None:  # the columns of a snapshot or a hub's data set are known once they are read
        return
    with suppress(ValueError):  # which `_source` tells of
        raws = _peeked(source)
        first = raws.get(next(iter(sources.adapter(source.adapter).TABLES if source.adapter else raws)))
        if first is None or (first.height >= readers.PEEKED and not isinstance(first.rows, pl.DataFrame)):
            return  # a record that is not looked at may have it
        for k, name in enumerate(names):
            if name not in (known := first.columns()):
                yield (*path, k), f"the file has no column {name!r}; {did_you_mean(name, known)}"


def _generated(path: Path, source: Source) -> Iterator[Found]:
    """Problems of a policy that writes a source."""
    assert source.generate is not None
    if "path" in source.generate.policy:
        yield from _model((*path, "policy"), source.generate.policy)
    yield from _template(path, source.generate.template)


def _published_options(path: Path, source: Source) -> Iterator[Found]:
    """Options that neither kind of snapshot has; which kind it is, is known once it is built."""
    from rlhf_data import sources

    wrong = [sources.check_options(f"published_{table}", source.options) for table in ("unpaired", "paired")]
    if all(wrong):
        yield (*path, "options"), "; ".join(wrong[0])


def _reader_options(path: Path, source: Source) -> Iterator[Found]:
    """Options of readers that none of the files is read by."""
    from rlhf_data import sources
    from rlhf_data.sources import readers
    from rlhf_data.sources.places import find_files

    try:
        files = [file for named in find_files(source.path).values() for file in named]
        formats = sorted({readers.format_of(file, source.format) for file in files})
    except ValueError:  # told where the path stands
        return
    for option, kinds in sources.READER_OPTIONS.items():
        if option in source.options and not kinds & set(formats):
            what = f"is for {' and '.join(sorted(kinds))}, and the source is {', '.join(formats) or 'none of these'}"
            yield (*path, "options", option), f"{what}; leave it out"


def _peek(source: Source) -> dict[str, dict[str, pl.DataType]]:
    """Columns and types of the first file, of those with records, of each of a source's tables."""
    from rlhf_data.sources import cells

    return {table: {} if raw is None else cells.types(raw) for table, raw in _peeked(source).items()}


def _peeked(source: Source) -> dict[str, "Raw | None"]:
    """The first records of the first file, of those with columns, of each of a source's tables."""
    from rlhf_data.sources import READER_OPTIONS, readers
    from rlhf_data.sources.places import find_files

    reading = {key: source.options[key] for key in READER_OPTIONS if key in source.options}
    return {
        table: next((raw for f in files if (raw := readers.peek(f, format=source.format, **reading)).columns()), None)
        for table, files in find_files(source.path).items()
    }


def _adapter_tables(path: Path, adapter: str, named: dict[str, dict[str, pl.DataType]]) -> Iterator[Found]:
    from rlhf_data import sources
    from rlhf_data.sources import cells

    wanted = sources.adapter(adapter).TABLES
    if wanted.keys() != named.keys():
        form = "{" + ", ".join(f"{table}: FILE" for table in wanted) + "}" if len(wanted) > 1 else "one file or glob"
        yield (*path, "path"), f"{adapter} reads {form}, not {', '.join(named)}"
        return
    for table, columns in wanted.items():
        for what in cells.absent(columns, list(named[table])):
            yield (*path, "path"), f"{adapter} needs it: {what}"


def _expression(
    path: Path, text: str, columns: dict[str, pl.DataType], *, wanted: type[pl.DataType] | None
) -> Iterator[Found]:
    """Problems of an expression in polars' SQL: its grammar, its columns, its type."""
    try:
        expression = pl.sql_expr(text)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        yield path, f"is not an expression: {_first_line(error)}"
        return
    unknown = [name for name in expression.meta.root_names() if name not in columns]
    if any(name.startswith("_POLARS_TMP") for name in unknown):
        yield path, "holds a SELECT; it can speak of the columns of its own row only"
        return
    for name in dict.fromkeys(unknown):
        yield path, f"no column {name!r}; {did_you_mean(name, columns)}"
    if unknown:
        return
    try:
        (dtype,) = pl.DataFrame(schema=columns).lazy().select(expression.alias("_")).collect_schema().dtypes()
        height = pl.DataFrame(schema=columns).clear(2).select(expression).height
    except pl.exceptions.PolarsError as error:
        yield path, f"cannot be computed: {_first_line(error)}"
        return
    if wanted is not None and dtype != wanted:
        yield path, f"is {dtype}, but a condition must be true or false; compare it with something"
    elif wanted is not None and height != 2:
        yield path, "says one thing of the whole table; a condition must speak of a row's own columns"
    elif wanted is not None and _looks_around(expression):
        yield path, "compares a row with others (a mean, a count, OVER); a condition must speak of a row's own columns"
    if wanted is None and not (dtype.is_numeric() or dtype == pl.Boolean):
        yield path, f"is {dtype}, but a weight must be a number"


def _looks_around(expression: pl.Expr) -> bool:
    """Whether an expression has an aggregate or a window: texts come in pieces, so what is around depends on those."""
    nodes = set(_nodes(json.loads(expression.meta.serialize(format="json"))))
    return not nodes.isdisjoint({"Agg", "Over", "Len", "Rank", "Quantile"})


def _nodes(tree: Any) -> Iterator[str]:
    """The names of a serialised expression's nodes, without its texts and columns."""
    if isinstance(tree, str):
        yield tree
    for name, part in tree.items() if isinstance(tree, dict) else ():
        yield name
        if name not in ("String", "Column"):
            yield from _nodes(part)
    for part in tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _model(path: Path, model: dict[str, Any]) -> Iterator[Found]:
    """A local model must be there; a hub id can only be tried when it is loaded."""
    folder = FilePath(model["path"]).expanduser()
    adapter = FilePath(model.get("adapter", folder)).expanduser()
    if "adapter" in model and not (adapter / "adapter_config.json").is_file():
        yield (*path, "adapter"), f"{adapter} has no adapter_config.json; give the folder of a LoRA adapter"
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model["path"])
    looks_local = hub_id is None or "gguf_file" in model or folder.exists()
    if looks_local and not folder.is_dir():
        yield path, f"no folder {model['path']}; give a model's folder or a hub id"
    elif "gguf_file" in model and not (folder / model["gguf_file"]).is_file():
        there = sorted(file.name for file in folder.glob("*.gguf"))
        yield path, f"no file {model['gguf_file']} in {folder}; {did_you_mean(model['gguf_file'], there)}"
    elif folder.is_dir() and "gguf_file" not in model and not _describes_a_model(folder):
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        yield path, f"{folder} has no config.json" + (f"; say gguf_file: {ggufs[0]}" if ggufs else "")


def _describes_a_model(folder: FilePath) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _tokens(part: str, section: Any) -> Iterator[Found]:
    """Problems of how text becomes tokens, in score or train."""
    template, longest, prompt = section.template, section.max_length or 1024, section.max_prompt_length
    yield from _template((part,), template)
    if prompt is not None and prompt >= longest:
        yield (
            (part, "max_prompt_length"),
            f"leaves no token of {longest} for an answer; make it less than max_length",
        )


def _template(path: Path, template: str | None) -> Iterator[Found]:
    if template not in (None, "chat", "plain") and not FilePath(template).is_file():
        yield (*path, "template"), f"no file {template}; write chat, plain, or the path of a .jinja file"


def _rounds(spec: Spec) -> Iterator[Found]:
    """Problems of online rounds."""
    assert spec.train is not None and spec.train.rounds is not None
    yield from _verifier(("train", "rounds", "rate", "verifier"), spec.train.rounds.rate.verifier)
    if "label" in rules.columns(spec.train.rule) and spec.shape.label == "source":
        what = f"{rules.label(spec.train.rule)} needs labels, and what a policy writes has none"
        yield ("shape", "label"), f"{what}; write label: threshold or label: prompt_mean"


def _train(spec: Spec) -> Iterator[Found]:
    train, shape = spec.train, spec.shape
    assert train is not None
    wrong = list(_rule(("train", "rule"), train.rule))
    yield from wrong
    if wrong:
        return
    name = rules.label(train.rule)
    yield from _rule_parameters(("train",), train)
    if rules.table(train.rule) != shape.to:
        yield (
            ("train", "rule"),
            f"{name} trains on the {rules.table(train.rule)} table, and shape makes it {shape.to}",
        )
        return
    held = tables.columns(shape.to) | tables.optional_columns(shape.to)
    if lacking := [column for column in _stored(train.rule, train) if column not in held]:
        what = f"{name} needs {', '.join(lacking)}, which a snapshot of shape {shape.to} does not hold"
        yield ("train", "rule"), f"{what}; {_instead(lacking)}"
    if rules.scores(train.rule) and spec.evaluate is not None:
        for judge in ("verifier", "reward_model"):
            if getattr(spec.evaluate, judge) is not None:
                yield ("evaluate", judge), f"a reward model writes no answers for a {judge} to grade; leave it out"
    references = [c for c in _stored(train.rule, train) if c in held]
    yield from _references(spec, name, references)
    if "margin" in rules.columns(train.rule) and shape.pairing == "as_given":
        yield (
            ("train", "rule"),
            f"{name} needs margin, which pairs have that are made from ratings; as_given has none",
        )
    if shape.to == "paired" and shape.ties == "soft" and not rules.honours_preference(train.rule):
        yield ("shape", "ties"), f"{name} does not read `preference`, so ties must be drop"
    if train.condition is not None:
        yield from _condition(spec, [column for column in references if column.startswith(("ref_", "old_"))])
    if train.rounds is not None:
        yield from _rounds(spec)
    for key in ("template", "max_length", "max_prompt_length"):
        if spec.score is not None and getattr(train, key) is not None:
            yield ("train", key), f"stands in score, whose tokens are trained on; leave it out here, or set score.{key}"


def _moving(spec: Spec) -> Iterator[Found]:
    """A reference that moves has no use for stored scores; only partners of other prompts come with them."""
    train = spec.train
    assert train is not None
    if train.reference is None:
        return
    if train.lora is not None and (train.reference.ema is not None or (train.reference.alpha or 1.0) < 1):
        what = "the average of two adapters' factors is not the average of their products"
        yield ("train", "reference"), f"{what}; with lora, write {{tau: N}}: the policy as it is, every N steps"
    read = [column for part in (train, *(train.blend or ())) for column in _columns(part.rule)]
    if spec.score is not None and "mismatched_id" not in read:
        moved = "set template and max_length in train instead"
        yield ("train", "reference"), f"stored scores are not valid once the reference moves; leave score out ({moved})"
    if not any(column.startswith("ref_") for column in read):
        yield ("train", "reference"), "no rule here reads log-probs of a reference; leave it out"


def _trains_a_head(rule: Any) -> bool:
    try:
        return rules.scores(rule)
    except ValueError:  # told where the rule stands
        return False


def _columns(rule: Any) -> tuple[str, ...]:
    try:
        return rules.columns(rule)
    except ValueError:  # told where the rule stands
        return ()


def _stored(rule: Any, train: Train) -> list[str]:
    """The columns that a snapshot has to hold for a rule: log-probs of a reference that moves are measured."""
    return [c for c in rules.columns(rule) if train.reference is None or not c.startswith("ref_")]


def _blended(path: Path, part: Blend, spec: Spec, known: dict[str, Spec], workspace: Workspace) -> Iterator[Found]:
    """Problems of a further table: its rule, and whether its snapshot serves it."""
    assert spec.train is not None
    wrong = list(_rule((*path, "rule"), part.rule))
    yield from wrong
    if wrong:
        return
    yield from _rule_parameters(path, part)
    others = [other.name or other.snapshot for other in spec.train.blend or () if other is not part]
    if (part.name or part.snapshot) in others:
        yield path, f"two parts are named {part.name or part.snapshot!r}; give each a name of its own"
    folder = None if part.snapshot in known else workspace.snapshot_of(part.snapshot)
    if part.snapshot not in known and folder is None:
        return  # told already
    if folder is None:
        other = known[part.snapshot]
        table, scored = other.shape.to, other.score is not None
    else:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        table, scored = manifest["table"], manifest["score"] is not None
    name = rules.label(part.rule)
    if _trains_a_head(part.rule) != _trains_a_head(spec.train.rule):
        yield (*path, "rule"), "a reward head and a policy are two models; train them apart"
    if rules.table(part.rule) != table:
        what = f"{name} trains on the {rules.table(part.rule)} table, and {part.snapshot} is {table}"
        yield (*path, "rule"), what
        return
    held = tables.columns(table) | tables.optional_columns(table)
    read = _stored(part.rule, spec.train)
    if lacking := [column for column in read if column not in held]:
        what = f"{name} needs {', '.join(lacking)}, which a snapshot of shape {table} does not hold"
        yield (*path, "rule"), f"{what}; {_instead(lacking)}"
    references = [c for c in read if c.startswith(("ref_", "old_")) or c == "mismatched_id"]
    if references and not scored:
        yield (*path, "rule"), f"{name} needs {', '.join(references)}; add score: {{model: …}} to {part.snapshot}"


def _rule_parameters(path: Path, section: Any) -> Iterator[Found]:
    """Keys beside a rule that are neither the section's nor the rule's, and values that are out of range."""
    name, parameters = rules.label(section.rule), rules.parameters(section.rule)
    known = [*parameters, *type(section).model_fields]
    for key, value in section.parameters.items():
        if key not in parameters:
            what = f"neither a key of {path[0] if len(path) == 1 else 'a blend'} nor a parameter of {name}"
            yield (*path, key), f"{what}; {did_you_mean(key, known)}"
            continue
        yield from _raised((*path, key), rules.check_parameters, section.rule, {key: value})


def _condition(spec: Spec, references: list[str]) -> Iterator[Found]:
    """Problems of the classes that a policy is conditioned on; categories are known once the data is read."""
    train = spec.train
    assert train is not None and train.condition is not None
    path, condition = ("train", "condition"), train.condition
    if references:
        what = f"{rules.label(train.rule)} reads {', '.join(references)}, which are of prompts without a class"
        yield path, f"{what}; take a rule without a reference, such as c_rlft, or leave condition out"
    if train.blend:
        yield path, "classes are written into the prompts of the main table alone; leave it out, or blend"
    if rules.scores(train.rule):
        yield path, "a reward model judges texts as they are; leave condition out"
    if condition.on == "label" and spec.shape.to == "paired":
        yield (*path, "on"), "the paired table has no label; condition on source or category, or shape to: unpaired"
    if condition.on == "source":
        for unknown in condition.text.keys() - spec.sources.keys():
            yield (*path, "text", unknown), f"no source of this name; {did_you_mean(unknown, spec.sources)}"
        if absent := spec.sources.keys() - condition.text.keys():
            yield (*path, "text"), f"says nothing of {', '.join(sorted(absent))}; every source is a class"


def _rule(path: Path, rule: Any) -> Iterator[Found]:
    """Problems of a rule by itself: its name, its formulas, the terms of its sum."""
    if isinstance(rule, str) and ":" not in rule and rule not in rules.RULES:
        yield path, f"no rule named {rule!r}; {did_you_mean(rule, rules.RULES)}"
        return
    yield from _raised(path, rules.scores, rule)


def _references(spec: Spec, name: str, columns: list[str]) -> Iterator[Found]:
    """What a rule needs of references that the spec does not score."""
    old = [column for column in columns if column.startswith("old_")]
    scored = [column for column in columns if column.startswith("ref_") or column in old]
    tokens = [column for column in scored if column.endswith("_token_logps")]
    if old and (spec.score is None or "old" not in spec.score.references):
        cure = "references: {old: {model: the policy that wrote the completions}}"
        cure = f"add score: {{model: …, {cure}}}" if spec.score is None else f"add to score: {cure}"
        yield ("train", "rule"), f"{name} needs {', '.join(scored)}; {cure}"
    elif scored and spec.score is None:
        yield ("train", "rule"), f"{name} needs {', '.join(scored)}; add score: {{model: …}}"
    elif tokens and spec.score is not None and not spec.score.token_logps:
        yield ("score", "token_logps"), f"false stores none, and {name} needs {', '.join(tokens)}; leave it out"


def _instead(lacking: list[str]) -> str:
    """What to do about columns that no snapshot holds."""
    return "take the rule's form against the reference, or write these numbers into the Parquet yourself"


def _raised(path: Path, function: Callable[..., Any], *arguments: Any) -> Iterator[Found]:
    try:
        function(*arguments)
    except ValueError as error:
        yield path, str(error)


def _first_line(error: BaseException) -> str:
    text = ""
    with suppress(IndexError):
        text = str(error).strip().splitlines()[0]
    return text or type(error).__name__
