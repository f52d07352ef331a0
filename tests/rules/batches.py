"""Batches for rules: drawn ones, as strange as the rule's domain allows, and one rich batch of each kind."""

import inspect
from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs

LOGPS = (
    "policy_chosen_logps", "policy_rejected_logps", "policy_logps", "chosen_score", "rejected_score",
    "policy_token_logps", "policy_chosen_token_logps", "policy_rejected_token_logps",
)  # fmt: skip

# Where a paper's formula leaves float64, as eˣ and 1/(1 − P) do, it is compared on this side of that only.
NATS = {
    "discopop": (-8, 0),
    "fdpo_forward_kl": (-5, 0),
    "fdpo_js": (-300, 0),
    "orpo": (-800, -0.1),
    "fdpo_alpha": (-5, 0),
    "wpo": (-30, 0),
    "unlikelihood": (-800, -0.1),
    "unlikelihood_unpaired": (-800, -0.1),
    **dict.fromkeys(("ppo", "ppo_old", "ppo_token", "ppo_dual_clip", "seed.ppo", "cispo"), (-30, 0)),
    **dict.fromkeys(("grpo", "grpo_old", "grpo_token", "k3"), (-8, 0)),
}
# What a rule remembers, at a step that is not its first.
REMEMBERED = {"bco": {"delta": 0.7, "seen": 3.0}, "beta_dpo_running": {"threshold": 0.4}}
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
    group = whole(0, 2)
    if rules.keeps_groups(name):
        weight = weight[group.clamp(max=n - 1)]  # the answers to a prompt count alike
    lengths = (whole(1, 5), whole(1, 5)) if rules.weighs_tokens(name) else (whole(1, 500), whole(1, 500))
    paired = rules.table(name) == "paired"
    batch = (
        Pairs(
            nats(), nats(), weight, nats(), nats(), uniform(0.5, 1), uniform(1e-6, 10), *lengths,
            uniform(-5, 0), uniform(-5, 0),
        )
        if paired
        else Completions(
            nats(), weight, lengths[0], whole(0, 1).bool(), whole(-40, 40).double() / 8, nats(), nats(), nats(),
            nats(), group,
        )
    )  # fmt: skip
    if name in ("rm", "rm_margin"):
        batch = replaced(batch, chosen_score=uniform(-scale, scale), rejected_score=uniform(-scale, scale))
    batch = _made_strange(batch, strange)
    if not rules.weighs_tokens(name):
        return batch

    least = max(low, high - scale)
    made = with_tokens(batch, lambda k: least + (high - least) * torch.rand(k, generator=random, dtype=torch.float64))
    return _made_strange(made, strange) if strange == "policy is reference" else made


def with_tokens(batch: Pairs | Completions, values) -> Pairs | Completions:
    """The batch with token log-probs `values(n_tokens)`, whose sums the rows' log-probs become."""
    fields = {}
    for side in ("chosen_", "rejected_") if isinstance(batch, Pairs) else ("",):
        counts = getattr(batch, f"{side}n_tokens")
        row = torch.arange(len(counts)).repeat_interleave(counts)
        fields[f"{side}token_row"] = row
        for who in ("policy", "ref") if isinstance(batch, Pairs) else ("policy", "ref", "old"):
            logps = values(len(row))
            totals = f"{who}_{side}logps"
            fields |= {f"{who}_{side}token_logps": logps, totals: torch.zeros(len(counts)).double()}
            fields[totals] = fields[totals].index_add(0, row, logps)
    return replaced(batch, **fields)


def _made_strange(batch: Pairs | Completions, strange: str) -> Pairs | Completions:
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    if strange == "policy is reference":
        fields |= {f"ref_{k.removeprefix('policy_')}": v for k, v in fields.items() if _is_measured(k)}
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


def _is_measured(name: str) -> bool:
    return name.startswith("policy_") and name.endswith("logps")


_RANGES = {
    (): st.floats(-2, 2),
    ("> 0",): st.floats(0.05, 3),
    (">= 0",): st.floats(0.1, 3),
    ("> 1",): st.floats(1.1, 5),
    (">= 0", "<= 1"): st.floats(0, 1),
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
    group = torch.tensor([0, 1, 0, 1, 0, 1, 2, 0])
    if rules.keeps_groups(name):
        weight = tensor([1, 2, 3])[group]
    if rules.table(name) == "paired":
        pairs = Pairs(
            policy_chosen_logps=policy,
            policy_rejected_logps=other,
            weight=weight,
            ref_chosen_logps=policy - noise(near_to_far),
            ref_rejected_logps=other - noise(near_to_far.flip(0)),
            preference=torch.linspace(0.5, 1, n, dtype=torch.float64),
            margin=torch.linspace(0.1, 3, n, dtype=torch.float64),
            chosen_n_tokens=lengths,
            rejected_n_tokens=others,
            policy_chosen_mean_log_p2=torch.linspace(-2, -0.1, n, dtype=torch.float64),
            policy_rejected_mean_log_p2=torch.linspace(-0.1, -0.4, n, dtype=torch.float64),
        )
        if name in ("rm", "rm_margin"):
            return replaced(pairs, chosen_score=noise(near_to_far), rejected_score=noise(near_to_far))
        return _rich_tokens(pairs, random) if rules.weighs_tokens(name) else pairs
    answers = Completions(
        policy_logps=policy,
        weight=weight,
        n_tokens=lengths,
        label=torch.arange(n) % 2 == 0,
        reward=tensor([1, -1, 0.5, -2, 2, -0.25, 3, 5]),
        ref_logps=policy - tensor([0.1, -0.3, 3, 0.5, -3, 2.5, 0.01, 0.5]),
        policy_mismatched_logps=other,
        ref_mismatched_logps=other - noise(near_to_far) - 1,
        old_logps=policy - tensor([-0.1, 0.3, 2, 0.05, -2, -1.5, 0.02, 0.1]),
        group=group,
    )
    return _rich_tokens(answers, random) if rules.weighs_tokens(name) else answers


def _rich_tokens(batch: Pairs | Completions, random: torch.Generator) -> Pairs | Completions:
    return with_tokens(batch, lambda k: -torch.rand(k, generator=random, dtype=torch.float64) * 1.5 - 0.01)


def replaced(batch: Pairs | Completions, **fields: Tensor) -> Pairs | Completions:
    return type(batch)(**(vars(batch) | fields))


def picked(batch: Pairs | Completions, rows: list[int]) -> Pairs | Completions:
    fields = {}
    for name, value in vars(batch).items():
        if value is None or "token_" not in name:
            fields[name] = None if value is None else value[rows]
            continue
        side = next((s for s in ("chosen_", "rejected_") if s in name), "")
        parts = by_row(value, getattr(batch, f"{side}token_row"), len(batch.weight))
        if name.endswith("token_row"):
            fields[name] = torch.cat([torch.full((len(parts[i]),), at) for at, i in enumerate(rows)])
        else:
            fields[name] = torch.cat([parts[i] for i in rows])
    return type(batch)(**fields)


def by_row(values: Tensor, row: Tensor, n: int) -> list[Tensor]:
    """Token values of each row."""
    return [values[row == i] for i in range(n)]
