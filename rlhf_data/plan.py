"""The plan of a spec: its steps in order, the fingerprint of each, and why it would run.

This module alone owns order and cache. A step's fingerprint is the digest of its code, its parameters, what it reads
from outside (the content of raw files, of a model) and its inputs' fingerprints; the same fingerprint means the same
output, so the step is cached.
"""

import fcntl
import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from xxhash import xxh3_128, xxh3_128_hexdigest

from rlhf_data import files, tables
from rlhf_data.scoring import MEASURES
from rlhf_data.snapshot import Snapshot, intact
from rlhf_data.sources.places import find_files
from rlhf_data.spec.sections import REWARD_WORDS, Clean, Generate, Source, Spec
from rlhf_data.texts import missing_chunks

# Packages that a step calls although it does not import them by itself.
CALLED = {
    "rlhf_data.reference:attach": ("scoring",),
    "rlhf_data.sampled:read_samples": ("sources",),
    "rlhf_data.snapshot:publish": ("report", "expectations.py"),
}
# Code that every data step leans on.
SHARED = ("ids.py", "tables.py", "texts.py", "quarantine.py", "accounting.py", "shape/partners.py")


@dataclass(frozen=True)
class Workspace:
    """The one folder of work in progress: steps, scores, models, runs."""

    root: Path

    def step(self, fingerprint: str) -> Path:
        return self.root / "steps" / fingerprint

    @property
    def chunks(self) -> Path:
        return self.root / "chunks"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def digests(self) -> Path:
        return self.root / "digests.json"

    def runs(self, name: str) -> Path:
        return self.root / "runs" / name

    def last(self, name: str, limit: int | None) -> Path:
        return self.root / "last" / f"{limited(name, limit)}.json"

    def model_of(self, name: str, limit: int | None = None) -> Path | None:
        """The trained model of the latest run of a spec, if there is one; in a quick look, that of its quick look."""
        latest = self.runs(limited(name, limit)) / "latest"
        if not latest.is_file():
            return None if limit is None else self.model_of(name)
        model = latest.parent / latest.read_text(encoding="utf-8").strip() / "model"
        return model if model.is_dir() else None

    def snapshot_of(self, name: str, limit: int | None = None) -> Path | None:
        """The snapshot that the latest build of a spec gave, if there is one; in a quick look, of its quick look."""
        publish = (files.read_json(self.last(name, limit)) or {}).get("publish")
        pointer = files.read_json(self.step(publish["fingerprint"]) / "snapshot.json") if publish else None
        if pointer is not None and intact(Path(pointer["path"])):
            return Path(pointer["path"])
        return None if limit is None else self.snapshot_of(name)

    def versions_of(self, name: str, version: str, limit: int | None = None) -> list[Path]:
        """The finished snapshots of a spec that has a latest one, by an id or its beginning; of an id, that alone."""
        latest = self.snapshot_of(name, limit)
        if latest is None:
            return []
        exact = list(latest.parent.glob(f"{version}/_SUCCESS"))
        return sorted(mark.parent for mark in exact or latest.parent.glob(f"{version}*/_SUCCESS"))


@dataclass(frozen=True)
class Step:
    """One step: a function by its path, the names of the steps it reads, and its parameters.

    Attributes:
        identity: what of the parameters, and of the world outside, decides the result; None means the parameters.
    """

    name: str
    function: str
    inputs: dict[str, str]
    parameters: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] | None = None


@dataclass(frozen=True)
class Planned:
    """A step with its fingerprint; `why` is empty where the result is cached."""

    step: Step
    fingerprint: str
    why: str

    @property
    def cached(self) -> bool:
        return not self.why


@contextmanager
def in_use(workspace: Workspace, *, alone: bool = False) -> Iterator[None]:
    """Hold a workspace while its steps are used: together with other builds, or alone, to remove what none needs.

    Raises:
        ValueError: alone, and a build is running.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    with (workspace.root / "lock").open("w") as lock:  # released when the process ends, however it ends
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX | fcntl.LOCK_NB) if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            raise ValueError(f"a build is running in {workspace.root}: wait for it, then run this again") from None
        yield


def limited(name: str, limit: int | None) -> str:
    """A name that keeps a quick look apart from the real thing."""
    return name if limit is None else f"{name}-limit{limit}"


def plan(spec: Spec, workspace: Workspace, *, limit: int | None = None, until: str = "publish") -> list[Planned]:
    """The steps of a spec in order, each with its fingerprint and whether and why it would run.

    Raises:
        ValueError: raw files or a model that are not there.
    """
    last_file = workspace.last(spec.name, limit)
    last = files.read_json(last_file) or {}
    planned: dict[str, Planned] = {}
    for step in steps(spec, workspace, limit=limit):
        facts = {
            "parameters": _identity(step),
            "code": code_version(step.function),
            # A list: the order of a step's inputs is the order of the sources, and decides which one names a text.
            "inputs": [[key, planned[name].fingerprint] for key, name in step.inputs.items()],
        }
        fingerprint = digest([step.name, step.function, facts])
        done = is_done(workspace.step(fingerprint))
        why = "" if done else _why(last.get(step.name), facts, [planned[name] for name in step.inputs.values()])
        planned[step.name] = Planned(step, fingerprint, why)
        if step.name == until:
            break
    return list(planned.values())


def remember(spec: Spec, workspace: Workspace, planned: list[Planned], limit: int | None) -> None:
    """Write down what was run, so that the next plan can say what changed, and `gc` what is needed."""
    facts = {
        p.step.name: {
            "parameters": _identity(p.step),
            "code": code_version(p.step.function),
            "fingerprint": p.fingerprint,
        }
        for p in planned
    }
    facts["publish"]["retain"] = spec.publish.retain
    files.write_text(workspace.last(spec.name, limit), json.dumps(facts, default=str))


def steps(spec: Spec, workspace: Workspace, *, limit: int | None = None) -> list[Step]:
    """The steps of a spec, each after those it reads."""
    made = [_source_step(name, source, spec, workspace, limit) for name, source in spec.sources.items()]
    made.append(Step("collect", "rlhf_data.clean.collect:collect", {s.name: s.name for s in made}))
    for k, operation in enumerate(spec.clean, start=1):
        made.append(_clean_step(f"clean:{k}", made[-1].name, operation, workspace))
    text = made[-1].name
    shares = {"test": spec.split.test, "validation": spec.split.validation}
    made.append(_rate_step(spec, text, workspace, limit))
    sides = {"text": text}
    if spec.split.by == "prompt_cluster":
        near = {"threshold": spec.split.near}
        made.append(Step("clusters", "rlhf_data.clean.steps:cluster_prompts", {"text": text}, near))
        sides["clusters"] = "clusters"
    made.append(Step("split", "rlhf_data.shape.split:split", sides, shares))
    made.append(_shape_step(spec, text))
    made.append(_weigh_step(spec, text, workspace, limit))
    if spec.score is not None and not (spec.train and spec.train.rounds):  # rounds score what they write
        made.append(_score_step(spec, text, workspace, limit))
    made.append(_publish_step(spec, made, text, limit, workspace))
    return made


def resolve_model(reference: dict[str, Any], workspace: Workspace, limit: int | None = None) -> dict[str, Any]:
    """A model reference with {run: NAME} replaced by the folder of that run's model.

    Raises:
        ValueError: that spec has not been trained in this workspace.
    """
    if "run" not in reference:
        return reference
    folder = workspace.model_of(reference["run"], limit)
    if folder is None:
        raise ValueError(
            f"no trained run of {reference['run']!r} in {workspace.root}: run that spec first, or the folder of both"
        )
    return {"path": str(folder)}


@cache
def code_version(function: str) -> str:
    """Digest of the source of a step: its package's files and what every step leans on."""
    module = importlib.util.find_spec(function.partition(":")[0])
    if module is None or module.origin is None:
        raise ValueError(f"no module for the step {function}")
    file, root = Path(module.origin), Path(__file__).parent
    own = [file] if file.parent == root else sorted(file.parent.glob("*.py"))
    for called in (root / name for name in CALLED.get(function, ())):
        own += [called] if called.is_file() else [path for path in sorted(called.iterdir()) if path.is_file()]
    contracts = sorted(p for p in Path(str(tables.folder("schemas"))).iterdir() if p.suffix == ".yaml")
    hasher = xxh3_128()
    for path in [*own, *(root / name for name in SHARED), *contracts]:
        hasher.update(path.name.encode() + path.read_bytes())
    return hasher.hexdigest()


def package_version(*names: str) -> str:
    """Digest of the source of whole packages of ours."""
    root, hasher = Path(__file__).parent, xxh3_128()
    for path in sorted(path for name in names for path in (root / name).glob("*.py")):
        hasher.update(path.name.encode() + path.read_bytes())
    return hasher.hexdigest()


def function_version(name: str | None) -> str:
    """Digest of the code of a user's "module:function"; empty where there is none.

    Of a module in a package it is all of the package, as a function may come from any of its files; of a package of
    ours it is that one alone.
    """
    module = importlib.util.find_spec(name.partition(":")[0]) if name else None
    if module is None:
        return ""
    package = module.name.partition(".")[0]
    if package == __name__.partition(".")[0]:
        package = module.name if module.submodule_search_locations else module.name.rpartition(".")[0]
    folders = getattr(importlib.util.find_spec(package), "submodule_search_locations", None)
    if folders is None:
        file = Path(module.origin or "")
        return files.digest(file) if file.is_file() else ""
    hasher = xxh3_128()
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.py")):
            hasher.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return hasher.hexdigest()


def _read_step(name: str, source: Source, workspace: Workspace, limit: int | None, adapter: str | None = None) -> Step:
    """The step that reads files; `adapter` in place of the source's own."""
    found = find_files(source.path)
    parameters = {
        "source": name,
        "files": {table: [str(path) for path in paths] for table, paths in found.items()},
        "limit": limit,
        **{
            key: getattr(source, key)
            for key in ("options", "columns", "sql", "format", "hf", "category", "keep_columns")
        },
        "adapter": adapter or source.adapter,
    }
    stamps = {table: [files.stamp(path) for path in paths] for table, paths in found.items()}  # before the digests
    content = {
        table: [[path.name, d] for path, d in zip(paths, files.digests(paths, workspace.digests), strict=True)]
        for table, paths in {**found, **_data_set_files(source.hf)}.items()
    }
    function = "rlhf_data.sources.ingest:ingest"
    digests = {table: [digest for _, digest in named] for table, named in content.items()}
    identity = {**parameters, "files": content}
    known = {"digests": digests, "stamps": stamps, "version": code_version(function)}
    return Step(f"read:{name}", function, {}, {**parameters, **known}, identity)


def _source_step(name: str, source: Source, spec: Spec, workspace: Workspace, limit: int | None) -> Step:
    """The step that reads a source, wherever it comes from."""
    if source.generate is not None:
        return _sample_step(name, source, source.generate, spec.seed, workspace, limit)
    if source.snapshot is None:
        return _read_step(name, source, workspace, limit)
    opened = resolve_snapshot(source.snapshot, workspace, limit)
    paths = [str(path) for path in opened.files()]
    own = {"path": paths, "snapshot": None, "format": "parquet"}
    return _read_step(name, source.model_copy(update=own), workspace, limit, f"published_{opened.manifest['table']}")


def _sample_step(
    name: str, source: Source, generate: Generate, seed: int, workspace: Workspace, limit: int | None
) -> Step:
    from rlhf_data.scoring.identity import content_hash, end_tokens, template_text, tokenizer_hash

    opened = resolve_snapshot(generate.prompts.snapshot, workspace, limit)
    policy = resolve_model(generate.policy, workspace, limit)
    function = "rlhf_data.sampled:read_samples"
    sampling = generate.model_dump(exclude={"policy", "prompts", "unfinished"})
    drawn = {
        "rows": generate.prompts.rows,
        "skip": generate.prompts.skip,
        "seed": seed,
        "unfinished": generate.unfinished,
        "policy": generate.policy.get("run") or Path(policy["path"]).name,
        "source": name,
        "category": source.category,
        "limit": limit,
    }
    where = {
        "files": [str(path) for path in opened.files(generate.prompts.split)],
        "table": opened.manifest["table"],
        "generate": {**sampling, "model": policy, "seed": seed},
        "version": code_version(function),
    }
    if not where["files"]:
        raise ValueError(f"sources.{name}: {opened.path} has no split {generate.prompts.split!r} to take prompts from")
    identity = {
        **drawn,
        **sampling,
        "template_text": template_text(generate.template),
        "prompts": [opened.manifest["content_hash"], generate.prompts.split],
        "model": content_hash(policy, workspace.root),
        "tokenizer": tokenizer_hash(policy, workspace.root),
        "ends": end_tokens(policy),
    }
    return Step(f"read:{name}", function, {}, {**drawn, **where}, identity)


def resolve_snapshot(reference: str, workspace: Workspace, limit: int | None = None) -> Snapshot:
    """The snapshot that NAME or NAME@VERSION means: of the last build of that spec, or a version of its own.

    Raises:
        ValueError: that spec was not built in this workspace, or it has no such version.
    """
    name, _, version = reference.partition("@")
    latest = workspace.snapshot_of(name, limit)
    if latest is None:
        raise ValueError(f"no snapshot of {name!r} in {workspace.root}: build that spec first, or the folder of both")
    if not version:
        return Snapshot(latest)
    there = workspace.versions_of(name, version, limit)
    if len(there) != 1:
        known = ", ".join(path.name for path in there) or "no version of that id is there"
        raise ValueError(f"{reference} does not name one snapshot of {latest.parent}: {known}")
    return Snapshot(there[0])


def _data_set_files(hf: str | None) -> dict[str, list[Path]]:
    """The files of a data set that is a local folder; what a hub id names is its own affair."""
    folder = Path((hf or "").partition(":")[0].partition("@")[0])
    return {"hf": sorted(p for p in folder.rglob("*") if p.is_file())} if hf and folder.is_dir() else {}


def _clean_step(name: str, text: str, operation: Clean, workspace: Workspace) -> Step:
    steps, inputs = "rlhf_data.clean.steps", {"text": text}
    of = {} if operation.of is None else {"of": operation.of}
    if operation.op == "filter":
        parameters = {"where": operation.where, "step": name}
        return Step(name, "rlhf_data.clean.filter:filter_completions", inputs, parameters)
    if operation.op == "dedup":
        keys = {"keys": sorted(operation.keys or (), reverse=True), "threshold": operation.near}
        return Step(name, f"{steps}:dedup", inputs, {**keys, "prefer": operation.prefer, "step": name})
    if operation.op == "decontaminate":
        paths = [path for named in find_files(operation.against).values() for path in named]
        content = [[path.name, d] for path, d in zip(paths, files.digests(paths, workspace.digests), strict=True)]
        said = {"ngram": operation.ngram, "step": name, **of}
        parameters = {"files": [str(path) for path in paths], **said}
        return Step(name, f"{steps}:decontaminate", inputs, parameters, identity={"files": {"raw": content}, **said})
    if operation.op == "language":
        parameters = {"keep": operation.keep, "min_confidence": operation.min_confidence, "step": name, **of}
        return Step(name, f"{steps}:keep_languages", inputs, parameters)
    parameters = {"kinds": operation.kinds, "step": name, **of}
    if operation.presidio is not None:
        parameters |= {"presidio": operation.presidio, "language": operation.language}
    if operation.do == "mask":
        function = f"{steps}:mask_personal_data"
        return Step(name, function, inputs, {**parameters, "version": code_version(function)}, identity=parameters)
    return Step(name, f"{steps}:mark_personal_data", inputs, {**parameters, "refuse": operation.do == "quarantine"})


def _rate_step(spec: Spec, text: str, workspace: Workspace, limit: int | None) -> Step:
    if spec.rate.by == "reward_model":
        return _reward_step(spec, text, workspace, limit)
    parameters = spec.rate.model_dump(exclude={"votes", *REWARD_WORDS}) | {"method": spec.rate.votes}
    parameters["prior"] = None if spec.rate.prior == "none" else dict(spec.rate.prior)
    identity = {**parameters, "verifier_code": function_version(spec.rate.verifier)} if spec.rate.verifier else None
    return Step("rate", "rlhf_data.rate.rate:rate", {"text": text}, parameters, identity)


def _reward_step(spec: Spec, text: str, workspace: Workspace, limit: int | None) -> Step:
    """The step `rate` by a reward model: text becomes tokens as the model's folder says, unless the spec does."""
    from rlhf_data.scoring.identity import content_hash, template_text, tokenizer_hash, told

    rate = spec.rate
    assert rate.reward_model is not None
    model = resolve_model(rate.reward_model, workspace, limit)
    said = told(model)
    recipe = {
        "template": rate.template or said.get("template", "chat"),
        "max_length": rate.max_length or said.get("max_length", 1024),
        "max_prompt_length": rate.max_prompt_length or (None if rate.max_length else said.get("max_prompt_length")),
        "dtype": rate.dtype,
    }
    identity = recipe | {
        "by": rate.by,
        "template": template_text(recipe["template"]),
        "reward_model": content_hash(model, workspace.root),
        "tokenizer": tokenizer_hash(model, workspace.root),
        "scoring_code": package_version("scoring"),
    }
    parameters = {"by": rate.by, "reward": {**recipe, "token_budget": rate.token_budget, "model": model}}
    return Step("rate", "rlhf_data.rate.rate:rate", {"text": text}, parameters, identity)


def _shape_step(spec: Spec, text: str) -> Step:
    shape = spec.shape
    inputs = {"rate": "rate", "split": "split", "text": text}
    if shape.to == "paired":
        parameters: dict[str, Any] = {
            key: getattr(shape, key) for key in ("pairing", "min_margin", "max_pairs_per_prompt", "ties")
        }
        parameters["seed"] = spec.seed
        parameters["sources"] = list(spec.sources)
        return Step("shape", "rlhf_data.shape.paired:to_paired", inputs, parameters)
    parameters = {key: getattr(shape, key) for key in ("label", "threshold", "gap", "ties", "balance")}
    parameters["seed"] = spec.seed
    parameters["sources"] = list(spec.sources)
    return Step("shape", "rlhf_data.shape.unpaired:to_unpaired", inputs, parameters)


def _weigh_step(spec: Spec, text: str, workspace: Workspace, limit: int | None) -> Step:
    weight = spec.weigh.weight.model_dump(exclude={"table"})
    learnt = spec.weigh.weight.table
    parameters = {
        "table": spec.shape.to,
        "seed": spec.seed,
        **spec.weigh.model_dump(exclude={"weight"}),
        **weight,
        "learnt": learnt.model_dump() if learnt else None,
    }
    identity = dict(parameters)
    if learnt is not None:
        if not Path(learnt.path).is_file():
            raise ValueError(f"weigh.weight.table: no file {learnt.path} (a relative path starts at {Path.cwd()})")
        identity["learnt_digest"] = files.digests([Path(learnt.path)], workspace.digests)
    if spec.weigh.of == "tokens":
        from rlhf_data.scoring.identity import tokenizer_hash

        section = spec.score or spec.train
        assert section is not None  # `check` has asked for one
        model = resolve_model(section.model, workspace, limit)
        parameters["tokenizer"] = model
        identity["tokenizer"] = tokenizer_hash(model, workspace.root)
    inputs = {"shape": "shape", "text": text, "rate": "rate"}
    return Step("weigh", "rlhf_data.weigh.weight:weigh", inputs, parameters, identity)


def _score_step(spec: Spec, text: str, workspace: Workspace, limit: int | None) -> Step:
    from rlhf_data import rules
    from rlhf_data.scoring.identity import content_hash, template_text, tokenizer_hash

    assert spec.score is not None
    partners = spec.train is not None and "mismatched_id" in rules.columns(spec.train.rule)
    recipes, columns = score_recipes(spec, workspace, limit), score_columns(spec)
    common = {"table": spec.shape.to, "partners": partners, "seed": spec.seed, "columns": columns}
    parameters = {**common, "score": recipes.pop("ref"), "others": recipes}
    identity = {
        "template_text": template_text(spec.score.template),
        "model": content_hash(parameters["score"]["model"], workspace.root),
        "tokenizer": tokenizer_hash(parameters["score"]["model"], workspace.root),
        **{key: value for key, value in parameters["score"].items() if key not in ("model", "token_budget")},
        **common,
        **{
            name: {
                "model": content_hash(other["model"], workspace.root),
                "tokenizer": tokenizer_hash(other["model"], workspace.root),
                "dtype": other["dtype"],
            }
            for name, other in recipes.items()
        },
    }
    return Step(
        "score", "rlhf_data.reference:attach", {"weigh": "weigh", "text": text, "rate": "rate"}, parameters, identity
    )


def score_recipes(spec: Spec, workspace: Workspace, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """The arguments of `scoring.score` for each named reference, `ref` first."""
    assert spec.score is not None
    section = spec.score
    give = sorted({measure for column in score_columns(spec) for measure in MEASURES if column.endswith(measure)})
    common = section.model_dump(exclude={"model", "references", "publish"}) | {"give": give}
    models = {"ref": (section.model, section.dtype)} | {
        name: (other.model, other.dtype or section.dtype) for name, other in section.references.items()
    }
    return {
        name: {**common, "model": resolve_model(model, workspace, limit), "dtype": dtype}
        for name, (model, dtype) in models.items()
    }


def score_columns(spec: Spec) -> list[str]:
    """The optional columns of the snapshot that its scores fill: what `train.rule` reads, and what `publish` names."""
    from rlhf_data import rules

    assert spec.score is not None
    references = ("ref", *spec.score.references)
    wanted = set(rules.columns(spec.train.rule)) if spec.train is not None else set()
    named = tuple(spec.score.publish)
    return [
        column
        for column in tables.optional_columns(spec.shape.to)
        if column.split("_")[0] in references and (column in wanted or column.endswith(named) or column == "old_logps")
    ]


def _publish_step(spec: Spec, before: list[Step], text: str, limit: int | None, workspace: Workspace) -> Step:
    lock = _as_yaml(_pinned(spec, workspace, limit))
    inputs = {**{step.name: step.name for step in before}, "rows": before[-1].name, "text": text, "rate": "rate"}
    to = limited(spec.publish.to.rstrip("/"), limit)
    sources = {name: _said_of(source, workspace, limit) for name, source in spec.sources.items()}
    parameters = {
        "to": to,
        "name": limited(spec.name, limit),
        "about": spec.about,
        "table": spec.shape.to,
        "expect": spec.expect.model_dump(exclude_none=True),
        "sources": sources,
        "keep": {name: source.keep_columns for name, source in spec.sources.items() if source.keep_columns},
        "limit": limit,
    }
    spec_hash = digest(lock)
    return Step(
        "publish",
        "rlhf_data.snapshot:publish",
        inputs,
        {**parameters, "spec_lock": lock, "spec_hash": spec_hash},
        identity={**parameters, "to": str(Path(to).resolve())},
    )


def _said_of(source: Source, workspace: Workspace, limit: int | None) -> dict[str, Any]:
    """What a manifest says of a source: how it is read, its licence, and the content that it is."""
    asked = source.generate.prompts.snapshot if source.generate else source.snapshot
    opened = resolve_snapshot(asked, workspace, limit) if asked else None
    found = {"raw": opened.files()} if source.snapshot and opened else find_files(source.path)
    said = {
        "adapter": source.adapter or _read_as(source),
        "license": source.license or (_license(opened) if opened else None),
        "hf": source.hf,
        "files": [
            {"name": path.name, "bytes": path.stat().st_size, "digest": d}
            for paths in found.values()
            for path, d in zip(paths, files.digests(paths, workspace.digests), strict=True)
        ],
    }
    if opened:
        said["snapshot"] = {"name": opened.manifest["name"], "id": opened.id, "path": str(opened.path)}
    if source.generate:
        from rlhf_data.scoring.identity import content_hash

        policy = resolve_model(source.generate.policy, workspace, limit)
        said["policy"] = {**source.generate.policy, "model_hash": content_hash(policy, workspace.root)}
    return said


def _read_as(source: Source) -> str:
    ways = ("columns", "sql", "snapshot", "generate")
    return next((way for way in ways if getattr(source, way) is not None), "as named")


def _license(opened: Snapshot) -> str | None:
    """The one licence of all sources of a snapshot; None where they have several, or one has none."""
    licenses = {source.get("license") for source in opened.manifest["sources"].values()}
    return licenses.pop() if len(licenses) == 1 else None


def _pinned(spec: Spec, workspace: Workspace, limit: int | None) -> dict[str, Any]:
    """The spec as it was written, so that it can be built again; snapshots that it reads are named by version."""
    written = spec.model_dump(exclude_unset=True)
    for source in written["sources"].values():
        place = source["generate"]["prompts"] if source.get("generate") else source
        if place.get("snapshot"):
            opened = resolve_snapshot(place["snapshot"], workspace, limit)
            place["snapshot"] = f"{place['snapshot'].partition('@')[0]}@{opened.id}"
    return written


def _as_yaml(tree: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML(typ="rt").dump(tree, text)
    return text.getvalue()


def is_done(step: Path) -> bool:
    """Whether a step's folder holds its result: of a publish step, that its snapshot is whole.

    What it says of itself, a few small files, is compared with what was written; its tables only when they are read.
    """
    written = written_by(step)
    if written is None or not all((step / name).is_file() for name in written):
        return False
    if any(files.digest(step / name) != told for name, told in written.items() if not name.endswith(".parquet")):
        return False
    if missing_chunks(step):
        return False
    pointer = step / "snapshot.json"
    return not pointer.is_file() or intact(Path((files.read_json(pointer) or {}).get("path", "")))


def written_by(step: Path) -> dict[str, str] | None:
    """The digest of each file that a finished step wrote; None where it never finished, or its mark is damaged."""
    return files.read_json(step / "_SUCCESS")


def _why(last: dict[str, Any] | None, facts: dict[str, Any], inputs: list[Planned]) -> str:
    if last is None:
        return "never run"
    now = json.loads(json.dumps(facts["parameters"], default=str))
    changed = [key for key in now.keys() | last["parameters"].keys() if now.get(key) != last["parameters"].get(key)]
    if changed:
        return "; ".join(_change(key, last["parameters"].get(key), now.get(key)) for key in sorted(changed))
    if last["code"] != facts["code"]:
        return "its code changed"
    upstream = [p.step.name for p in inputs if p.why]
    return f"after {', '.join(dict.fromkeys(upstream))}" if upstream else "its result is not in the workspace"


def _change(key: str, old: Any, new: Any) -> str:
    if key == "files":
        before = {name: d for named in (old or {}).values() for name, d in named}
        now = {name: d for named in (new or {}).values() for name, d in named}
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return f"raw files changed: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    short = [json.dumps(value)[:60] for value in (old, new)]
    return f"{key}: {short[0]} → {short[1]}"


def digest(value: Any) -> str:
    return xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def _identity(step: Step) -> dict[str, Any]:
    return _text_keys(step.parameters if step.identity is None else step.identity)


def _text_keys(value: Any) -> Any:
    """`value` with text for keys: YAML has maps of 1, true and "tie" at once, which JSON could not sort."""
    if isinstance(value, dict):
        return {str(key): _text_keys(part) for key, part in value.items()}
    return [_text_keys(part) for part in value] if isinstance(value, list | tuple) else value
