"""The command that shows what models write."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_data.commands.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    Overrides,
    Variables,
    WorkspacePath,
    named_model,
    open_workspace,
    read_specs,
)
from rlhf_data.terminal import say

if TYPE_CHECKING:
    from rlhf_data.plan import Workspace
    from rlhf_data.spec import Spec


def generate(
    spec: Annotated[
        Path | None,
        typer.Argument(help="A spec: its latest policy, beside the model that it started from, on its own snapshot."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that writes: a folder or a hub id.")] = None,
    run: Annotated[str | None, typer.Option(help="The latest policy of this spec writes.")] = None,
    beside: Annotated[
        str | None,
        typer.Option(help="A second model: a folder, a hub id or run:NAME; none: the first alone."),
    ] = None,
    snapshot: Annotated[str | None, typer.Option("--snapshot", "-s", help="Whose prompts are answered.")] = None,
    split: Annotated[str, typer.Option(help="Prompts of which split.")] = "test",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts, drawn by keyed hash.")] = 5,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Answers to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest token.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    template: Annotated[str, typer.Option(help="chat, plain, or a .jinja file; a spec has its own.")] = "chat",
    verifier: Annotated[str | None, typer.Option(help="module:function of (messages, answer) → reward.")] = None,
    engine: Annotated[str, typer.Option(help="auto, transformers or vllm.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of prompts and of sampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all answers to this .jsonl or .parquet file.")] = None,
    var: Variables = None,
    overrides: Overrides = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show what one or two models write to held-out prompts, side by side.

    The same question is not answered twice, and one that was stopped goes on; --json prints a line of JSON an answer.
    """
    import shutil

    from rlhf_data import beside as looking
    from rlhf_data.inspect.places import open_at

    space = open_workspace(workspace)
    one = read_specs(spec, var, overrides, workspace)[0] if spec is not None else None
    models = _writers(one, f"run:{run}" if run else model, beside, space)
    if one is not None:
        snapshot, verifier = snapshot or one.name, verifier or (one.evaluate.verifier if one.evaluate else None)
    if snapshot is None:
        raise ValueError("whose prompts shall be answered? name a spec, or --snapshot SNAPSHOT")
    if out is not None:
        looking.check_file(out)
    rate = None
    if verifier is not None:
        from rlhf_data.rate.verifier import find_verifier

        rate = find_verifier(verifier)
    sampling: dict[str, Any] = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "engine": engine}
    sampling |= _prompt_encoding(one) if one is not None else {"template": template}
    where = {"store": space.samples, "cache": space.root, "seed": seed, "progress": sys.stderr.isatty()}
    opened = open_at(snapshot, space)
    found = looking.answers(opened, models, split=split, prompts=prompts, verifier=rate, **where, **sampling)
    if out is not None:
        looking.write(found, out)
        say(f"{out}: {found.height:,} answers")
    if as_json:
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in found.to_dicts()))
    elif out is None:
        print("\n".join(looking.in_words(found, shutil.get_terminal_size((100, 24)).columns)))
    else:
        print("\n".join(looking.summary(found)))


def _writers(
    spec: "Spec | None", named: str | None, beside: str | None, workspace: "Workspace"
) -> dict[str, dict[str, Any]]:
    """The models that a command asks to write, by the names they are shown under: one, or two side by side.

    Args:
        spec: its policy is the first and the model it started from the second, where none is named in their place.
        named: the first, as `named_model` takes it.
        beside: the second; "none" for none.
        workspace: where runs are.
    """
    from rlhf_data.beside import name_of
    from rlhf_data.plan import resolve_model

    if spec is not None and spec.train is None and named is None:
        raise ValueError(f"{spec.name} has no train section: name a model by --model, or --run NAME")
    if spec is not None and spec.train is not None and named is None:
        models = {spec.name: resolve_model({"run": spec.name}, workspace)}
        second = resolve_model(spec.train.model, workspace) if beside is None else None
        models |= {f"{spec.name} before": second} if second else {}
    else:
        if named is None:
            raise ValueError("which model shall write? name a spec, --model MODEL, or --run NAME")
        first = named_model(named, workspace)
        models = {name_of(first): first}
    if beside is not None and beside != "none":
        other = named_model(beside, workspace)
        models[name_of(other, list(models))] = other
    return models


def _prompt_encoding(spec: "Spec") -> dict[str, Any]:
    """How the prompts of a spec's model become tokens."""
    tokens = spec.score or spec.train
    longest = (tokens.max_length if tokens else None) or 1024
    limit = (tokens.max_prompt_length if tokens else None) or longest * 3 // 4
    return {"template": (tokens.template if tokens else None) or "chat", "max_prompt_length": limit}
