"""Batches for rules: drawn ones, as strange as the rule's domain allows, and one rich batch of each kind."""

import inspect
from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "policy_logps")

# Where a paper's formula leaves float64, as eˣ and 1/(1 − P) do, it is compared on this side of that only.
NATS = {
    "discopop": (-8, 0),
    "fdpo_forward_kl": (-5, 0),
    "fdpo_js": (-300, 0),
    "orpo": (-800, -0.1),
    **dict.fromkeys(("ppo", "ppo_dual_clip", "seed.ppo"), (-30, 0)),
}
WHOLE_WEIGHTS = {"aot", "aot_unpaired"}


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# What makes a batch strange, beside its scale.
STRANGE = ("", "policy is reference", "equal sides", "one token", "zero rewards", "equal rows", "all labels alike")


@st.composite
def drawn(draw, name: str, *, extreme: bool = False) -> Pairs | Completions:
    """Batches of the rule's table; `extreme` ones may leave the domain of its paper's formula.

    Hypothesis picks size, scale and strangeness, a generator the numbers: of sums of thousands of nats a sigmoid shows
    nothing, so every scale has its turn.
    """
    low, high = (-5000.0, 0.0) if extreme else NATS.get(name, (-5000.0, 0.0))
    n, scale = draw(st.integers(1, 6)), draw(st.sampled_from([3.0, 50.0, 800.0, 5000.0]))
    strange = draw(st.sampled_from(STRANGE))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 32)))

    def uniform(least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(n, generator=random, dtype=torch.float64)

    def whole(least: int, most: int) -> Tensor:
        return torch.randint(least, most + 1, (n,), generator=random)

    def nats() -> Tensor:
        return uniform(max(low, high - scale), high)

    weight = whole(1, 3).double() if name in WHOLE_WEIGHTS else uniform(0.01, 100)
    paired = rules.table(name) == "paired"
    batch = (
        Pairs(nats(), nats(), weight, nats(), nats(), uniform(0.5, 1), uniform(1e-6, 10), whole(1, 500), whole(1, 500))
        if paired
        else Completions(
            nats(), weight, whole(1, 500), whole(0, 1).bool(), whole(-40, 40).double() / 8, nats(), nats(), nats()
        )
    )
    return _made_strange(batch, strange)


def _made_strange(batch: Pairs | Completions, strange: str) -> Pairs | Completions:
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    if strange == "policy is reference":
        fields |= {f"ref_{k.removeprefix('policy_')}": v for k, v in fields.items() if k.startswith("policy_")}
    if strange == "equal sides":
        fields |= {k.replace("chosen", "rejected"): v for k, v in fields.items() if "chosen" in k}
    if strange == "one token":
        fields |= {k: torch.ones_like(v) for k, v in fields.items() if "n_tokens" in k}
    if strange == "zero rewards":
        fields |= {k: v * 0 for k, v in fields.items() if k == "reward"}
    if strange == "equal rows":
        fields |= {k: v[:1].expand_as(v).clone() for k, v in fields.items()}
    if strange == "all labels alike":
        fields |= {k: v[:1].expand_as(v).clone() for k, v in fields.items() if k == "label"}
    return type(batch)(**fields)


_RANGES = {
    (): st.floats(-2, 2),
    ("> 0",): st.floats(0.05, 3),
    (">= 0",): st.floats(0.1, 3),
    ("> 1",): st.floats(1.1, 5),
    (">= 0", "< 0.5"): st.floats(0, 0.45),
    ("> 0", "< 0.5"): st.floats(0.001, 0.45),
}


def hyperparameters(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """The defaults, or any others in range."""
    keyword = [p for p in inspect.signature(rules.RULES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    spaces = {
        p.name: st.sampled_from(get_args(p.annotation))
        if get_origin(p.annotation) is Literal
        else _RANGES[getattr(p.annotation, "__metadata__", ())]
        for p in keyword
    }
    return st.one_of(st.just(rules.parameters(name)), st.fixed_dictionaries(spaces))


def rich(name: str) -> Pairs | Completions:
    """Eight rows on both sides of every threshold: near their references and far, short and long, good and bad."""
    random = torch.Generator().manual_seed(3)
    n = 8

    def noise(spread: Tensor) -> Tensor:
        return torch.randn(n, generator=random, dtype=torch.float64) * spread

    near_to_far = torch.linspace(0.05, 25, n, dtype=torch.float64)
    lengths, others = (torch.randint(2, 30, (n,), generator=random) for _ in range(2))
    policy, other = (-count * torch.rand(n, generator=random, dtype=torch.float64) - 0.2 for count in (lengths, others))
    # Whole and small: every distance of weights and every rank of margins is a different one.
    weight = tensor([1, 2, 1, 3, 1, 1, 2, 1])
    if rules.table(name) == "paired":
        return Pairs(
            policy_chosen_logps=policy,
            policy_rejected_logps=other,
            weight=weight,
            ref_chosen_logps=policy - noise(near_to_far),
            ref_rejected_logps=other - noise(near_to_far.flip(0)),
            preference=torch.linspace(0.5, 1, n, dtype=torch.float64),
            margin=torch.linspace(0.1, 3, n, dtype=torch.float64),
            chosen_n_tokens=lengths,
            rejected_n_tokens=others,
        )
    return Completions(
        policy_logps=policy,
        weight=weight,
        n_tokens=lengths,
        label=torch.arange(n) % 2 == 0,
        reward=tensor([1, -1, 0.5, -2, 2, -0.25, 3, 5]),
        ref_logps=policy - tensor([0.1, -0.3, 3, 0.5, -3, 2.5, 0.01, -0.5]),
        policy_mismatched_logps=other,
        ref_mismatched_logps=other - noise(near_to_far) - 1,
    )


def replaced(batch: Pairs | Completions, **fields: Tensor) -> Pairs | Completions:
    return type(batch)(**(vars(batch) | fields))


def picked(batch: Pairs | Completions, rows: list[int]) -> Pairs | Completions:
    return type(batch)(**{name: None if value is None else value[rows] for name, value in vars(batch).items()})
