"""Where the data comes from: one module an adapter, declared columns, SQL; `ingest` is the step.

An adapter is a module with `TABLES` (the raw columns that it needs, by table, the main one first) and `read`, whose
positional parameters are those tables and whose keyword-only parameters are its options. To add one, write the module
and name it here.
"""

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rlhf_data.words import hint

__all__ = ["ADAPTERS", "OWN", "READER_OPTIONS", "adapter", "adapter_options", "check_options"]

# The options that a reader of files has beside the adapter's own, and the formats that know them.
READER_OPTIONS = {
    "quote": frozenset({"csv", "tsv"}),
    "separator": frozenset({"csv", "tsv"}),
    "sheet": frozenset({"xlsx"}),
}
ADAPTERS = (
    "alpaca",
    "alpaca_eval",
    "arena",
    "arena_bench",
    "arena_human_preference",
    "beavertails",
    "dolly",
    "fastchat_reviews",
    "finegrained_qa",
    "guanaco",
    "helpsteer",
    "helpsteer2_preference",
    "helpsteer3",
    "hh_rlhf",
    "kto",
    "llamafactory_dpo",
    "llamafactory_kto",
    "llmbar",
    "llmfao",
    "mqm",
    "nectar",
    "oasst",
    "orca_dpo",
    "pandalm",
    "pku_safe",
    "prometheus",
    "sharegpt",
    "shp",
    "stack_exchange",
    "summarize_feedback",
    "ultrafeedback",
    "ultrafeedback_binarized",
    "webgpt",
)

# Of what the project itself has written: no `adapter:` of a spec, but what {snapshot: …} and {generate: …} are read by.
OWN = ("published_paired", "published_unpaired", "written")


def adapter(name: str) -> ModuleType:
    """The module of an adapter.

    Raises:
        ValueError: no such adapter.
    """
    if name not in (*ADAPTERS, *OWN):
        meant = hint(name, ADAPTERS, ", ")
        raise ValueError(f"no adapter named {name!r}{meant}; known adapters: {', '.join(ADAPTERS)}")
    return importlib.import_module(f"rlhf_data.sources.{name}")


def adapter_options(name: str) -> dict[str, Any]:
    """The options of an adapter and their defaults (inspect.Parameter.empty where it must be given)."""
    parameters = inspect.signature(adapter(name).read).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "file"}


def check_options(name: str | None, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a source, each as a sentence.

    Args:
        name: the adapter; None where columns or a query say what a file holds.
        options: the adapter's, and those of the readers of CSV, TSV and Excel.
    """
    own = adapter_options(name) if name else {}
    known = [*own, *READER_OPTIONS]
    unknown = [
        f"{name or 'a source without adapter'} has no option {option!r}{hint(option, known, ', ')}; "
        f"it has {', '.join(known)}"
        for option in options
        if option not in known
    ]
    needed = [o for o, default in own.items() if default is inspect.Parameter.empty and o not in options]
    return unknown + [f"{name} needs the option {option!r}" for option in needed]
