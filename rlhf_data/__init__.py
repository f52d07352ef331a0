"""Feedback data in, weighted preference tables and trained policies out.

>>> import rlhf_data as rd
>>> rd.rule("dpo", beta=0.1).__name__
'weigh'
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_data.api import build, open_snapshot, read_spec, rule, train

__all__ = ["build", "open_snapshot", "read_spec", "rule", "train"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Loaded at first use: `import rlhf_data` takes milliseconds.
    if name not in __all__:
        raise AttributeError(f"module 'rlhf_data' has no attribute {name!r}; it has {', '.join(__all__)}")
    from rlhf_data import api

    return getattr(api, name)
