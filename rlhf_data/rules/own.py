"""A user's own rule: a function in an importable module, named as `module:function`."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rlhf_data.rules.batch import PairTokenWeights, PairWeights, TokenWeights, quantities

_KINDS = {"PairWeights": PairWeights, "PairTokenWeights": PairTokenWeights, "TokenWeights": TokenWeights}


def own(name: str) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """The function `module:function`, and `module:function_loss` where there is one, for reports.

    It has the form of ours: positional parameters name quantities, keyword-only ones with defaults are its
    hyperparameters, and what it returns is annotated: PairWeights (or PairTokenWeights) of pairs, Tensor (or
    TokenWeights) of completions.

    Raises:
        ValueError: no such function, no annotation of what it returns, or a quantity that no batch has.
    """
    module, _, function = name.partition(":")
    try:
        loaded = importlib.import_module(module)
        weigh = getattr(loaded, function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no rule {name}: name an importable function as module:function ({error})") from error
    if not inspect.isfunction(weigh):
        raise ValueError(f"{name} is no function: a rule is one, from quantities of a batch to its weights")
    signature = inspect.signature(weigh)
    returned = signature.return_annotation
    if returned is inspect.Signature.empty:
        raise ValueError(f"{name} does not say what it returns: annotate it with -> PairWeights, or -> Tensor")
    kind = _KINDS.get(str(returned).strip("'\"").rpartition(".")[2], returned)
    table = "paired" if kind in (PairWeights, PairTokenWeights) else "unpaired"
    for parameter in signature.parameters.values():
        _check(name, parameter, table)
    if kind is not returned:  # the annotation is a string, as under `from __future__ import annotations`
        weigh.__signature__ = signature.replace(return_annotation=kind)  # type: ignore[attr-defined]
    return weigh, getattr(loaded, f"{function}_loss", None)


def _check(name: str, parameter: inspect.Parameter, table: str) -> None:
    if parameter.kind is parameter.KEYWORD_ONLY:
        if parameter.default is parameter.empty:
            raise ValueError(f"{name}: the hyperparameter {parameter.name} has no default: give it one")
    elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        raise ValueError(f"{name} takes {parameter}: name the quantities that it needs one by one")
    elif parameter.name not in quantities(table):
        raise ValueError(
            f"{name} names {parameter.name}, which is no quantity of the {table} table; "
            f"known: {', '.join(quantities(table))}; write hyperparameters after a *"
        )
