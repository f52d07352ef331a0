"""What a rule sees, and what it gives: log-probs of a batch in, one weight a completion (or a token) out.

Log-probs are in nats, summed over the tokens of a completion. `Pairs` and `Completions` hold what was measured;
quantities that follow from it are properties, written once. A rule names what it needs by the property's name.

Quantities with `token_` in their names are flat: the tokens of all completions end to end, (tokens,), with the number
of each one's row in `token_row`; everything else is one number a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Ranges of hyperparameters: `rule()` reads them off a function's signature. A plain float may be any finite number.
Positive = Annotated[float, "> 0"]
NotNegative = Annotated[float, ">= 0"]
Above1 = Annotated[float, "> 1"]
Share = Annotated[float, ">= 0", "<= 1"]
BelowHalf = Annotated[float, ">= 0", "< 0.5"]
InsideHalf = Annotated[float, "> 0", "< 0.5"]


class PairWeights(NamedTuple):
    """The coefficients of ∇log π(y₊) and of −∇log π(y₋), each (n,)."""

    chosen: "Tensor"
    rejected: "Tensor"


class TokenWeights(NamedTuple):
    """The coefficients of each token's ∇log p, (tokens,), in the order of `token_row`; negative pushes down."""

    tokens: "Tensor"


class PairTokenWeights(NamedTuple):
    """The coefficients of ∇log p of chosen's tokens, and of −∇log p of rejected's, (tokens of that side,)."""

    chosen: "Tensor"
    rejected: "Tensor"


class Memory(NamedTuple):
    """What a rule carries from one optimizer step to the next: numbers, and how a step changes them.

    `update` is like a rule: it names quantities of the batch, numbers of the memory and hyperparameters, and returns
    the numbers after the step. A rule is given the memory that its own step has updated.
    """

    start: dict[str, float]
    update: Callable[..., "dict[str, Tensor]"]


@dataclass(frozen=True)
class Pairs:
    """n preferences; every tensor is (n,), or (tokens of that side,) where its name has `token_`.

    `preference` is the probability that the chosen completion is the better one, `weight` what a row counts for,
    `margin` the gap of the two rewards, at least 0. The token counts are of the completions. The scores are of a
    reward model's head; where they are given, a rule's weights are of their gradients. `mean_log_p2` is the mean over
    tokens of log Σ p², over the vocabulary.
    """

    policy_chosen_logps: "Tensor"
    policy_rejected_logps: "Tensor"
    weight: "Tensor"
    ref_chosen_logps: "Tensor | None" = None
    ref_rejected_logps: "Tensor | None" = None
    preference: "Tensor | None" = None
    margin: "Tensor | None" = None
    chosen_n_tokens: "Tensor | None" = None
    rejected_n_tokens: "Tensor | None" = None
    policy_chosen_mean_log_p2: "Tensor | None" = None
    policy_rejected_mean_log_p2: "Tensor | None" = None
    chosen_score: "Tensor | None" = None
    rejected_score: "Tensor | None" = None
    policy_chosen_token_logps: "Tensor | None" = None
    policy_rejected_token_logps: "Tensor | None" = None
    ref_chosen_token_logps: "Tensor | None" = None
    ref_rejected_token_logps: "Tensor | None" = None
    chosen_token_row: "Tensor | None" = None
    rejected_token_row: "Tensor | None" = None

    @property
    def chosen_log_ratio(self) -> "Tensor":
        """The chosen completion's log π(y₊)/π_ref(y₊)."""
        return self.policy_chosen_logps - given(self, "ref_chosen_logps")

    @property
    def rejected_log_ratio(self) -> "Tensor":
        """The rejected completion's log π(y₋)/π_ref(y₋)."""
        return self.policy_rejected_logps - given(self, "ref_rejected_logps")

    @property
    def log_ratio_margin(self) -> "Tensor":
        """The log-ratio of the chosen completion minus that of the rejected one; 0 where policy = reference."""
        return self.chosen_log_ratio - self.rejected_log_ratio

    @property
    def mean_log_ratio_margin(self) -> "Tensor":
        """The log-ratio margin where each side's log-ratio is a mean over its tokens."""
        chosen = self.chosen_log_ratio / given(self, "chosen_n_tokens")
        return chosen - self.rejected_log_ratio / given(self, "rejected_n_tokens")

    @property
    def logp_margin(self) -> "Tensor":
        """The policy's log π(y₊)/π(y₋)."""
        return self.policy_chosen_logps - self.policy_rejected_logps

    @property
    def ref_logp_margin(self) -> "Tensor":
        """The reference's log π_ref(y₊)/π_ref(y₋)."""
        return given(self, "ref_chosen_logps") - given(self, "ref_rejected_logps")

    @property
    def chosen_mean_logp(self) -> "Tensor":
        """The chosen completion's log-prob a token."""
        return self.policy_chosen_logps / given(self, "chosen_n_tokens")

    @property
    def rejected_mean_logp(self) -> "Tensor":
        """The rejected completion's log-prob a token."""
        return self.policy_rejected_logps / given(self, "rejected_n_tokens")

    @property
    def chosen_token_log_ratio(self) -> "Tensor":
        """Each chosen token's log p/p_ref, (tokens,)."""
        return given(self, "policy_chosen_token_logps") - given(self, "ref_chosen_token_logps")

    @property
    def rejected_token_log_ratio(self) -> "Tensor":
        """Each rejected token's log p/p_ref, (tokens,)."""
        return given(self, "policy_rejected_token_logps") - given(self, "ref_rejected_token_logps")

    @property
    def chosen_token_position(self) -> "Tensor":
        """How many tokens of the chosen completion stand before each, (tokens,)."""
        return positions(given(self, "chosen_token_row"))

    @property
    def rejected_token_position(self) -> "Tensor":
        """How many tokens of the rejected completion stand before each, (tokens,)."""
        return positions(given(self, "rejected_token_row"))


@dataclass(frozen=True)
class Completions:
    """n completions; every tensor is (n,), or (tokens,) where its name has `token_`.

    The mismatched log-probs are of another prompt's completion after this row's prompt: they say how far the policy
    has moved from the reference on text that no row teaches. `n_tokens` counts the completion's tokens. `reward` is
    how good the completion is, larger is better; policy-gradient rules take it as the advantage. `group` is the same
    number for all answers to one prompt. The old log-probs are of the policy that wrote the completion.
    """

    policy_logps: "Tensor"
    weight: "Tensor"
    n_tokens: "Tensor | None" = None
    label: "Tensor | None" = None
    reward: "Tensor | None" = None
    ref_logps: "Tensor | None" = None
    policy_mismatched_logps: "Tensor | None" = None
    ref_mismatched_logps: "Tensor | None" = None
    old_logps: "Tensor | None" = None
    group: "Tensor | None" = None
    policy_token_logps: "Tensor | None" = None
    ref_token_logps: "Tensor | None" = None
    old_token_logps: "Tensor | None" = None
    token_row: "Tensor | None" = None

    @property
    def log_ratio(self) -> "Tensor":
        """The completion's log π(y)/π_ref(y)."""
        return self.policy_logps - given(self, "ref_logps")

    @property
    def mismatched_log_ratio(self) -> "Tensor":
        """The mismatched completion's log π(y')/π_ref(y')."""
        return given(self, "policy_mismatched_logps") - given(self, "ref_mismatched_logps")

    @property
    def old_log_ratio(self) -> "Tensor":
        """The completion's log π(y)/π_old(y), π_old being the policy that wrote it."""
        return self.policy_logps - given(self, "old_logps")

    @property
    def mean_logp(self) -> "Tensor":
        """The completion's log-prob a token."""
        return self.policy_logps / given(self, "n_tokens")

    @property
    def token_log_ratio(self) -> "Tensor":
        """Each token's log p/p_ref, (tokens,)."""
        return given(self, "policy_token_logps") - given(self, "ref_token_logps")

    @property
    def old_token_log_ratio(self) -> "Tensor":
        """Each token's log p/p_old, (tokens,)."""
        return given(self, "policy_token_logps") - given(self, "old_token_logps")


_PAIR_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")

# The columns of a snapshot that may be empty, or missing, and that a quantity cannot do without.
COLUMNS: dict[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            *_PAIR_REFERENCES, "ref_logps", "ref_mismatched_logps", "old_logps", "ref_token_logps", "old_token_logps",
            "ref_chosen_token_logps", "ref_rejected_token_logps",
        )
    },
    "chosen_log_ratio": ("ref_chosen_logps",),
    "rejected_log_ratio": ("ref_rejected_logps",),
    "log_ratio_margin": _PAIR_REFERENCES,
    "mean_log_ratio_margin": _PAIR_REFERENCES,
    "ref_logp_margin": _PAIR_REFERENCES,
    "margin": ("margin",),
    "log_ratio": ("ref_logps",),
    "mismatched_log_ratio": ("mismatched_id", "ref_mismatched_logps"),
    "policy_mismatched_logps": ("mismatched_id",),
    "label": ("label",),
    "reward": ("reward",),
    "old_log_ratio": ("old_logps",),
    "token_log_ratio": ("ref_token_logps",),
    "old_token_log_ratio": ("old_token_logps",),
    "chosen_token_log_ratio": ("ref_chosen_token_logps",),
    "rejected_token_log_ratio": ("ref_rejected_token_logps",),
}  # fmt: skip


# What a reward head gives: the trainer measures it, as it measures log-probs, and no snapshot holds it.
SCORES = frozenset({"chosen_score", "rejected_score"})
# What a rule over these may name beside them: a reward model has no log-probs.
WITH_SCORES = frozenset({"preference", "margin", "weight", "chosen_n_tokens", "rejected_n_tokens"})

# Quantities that are known before the policy runs: what was measured without it, and what follows from that alone.
STATIC = frozenset(
    field.name
    for kind in (Pairs, Completions)
    for field in fields(kind)
    if not field.name.startswith("policy_") and not field.name.endswith("_score")
) | {"ref_logp_margin", "chosen_token_position", "rejected_token_position"}


def quantities(table: str) -> tuple[str, ...]:
    """All that a rule over "paired" or "unpaired" rows can name."""
    kind = Pairs if table == "paired" else Completions
    derived = [name for name, value in vars(kind).items() if isinstance(value, property)]
    return (*(field.name for field in fields(kind)), *derived)


def counted_by(quantity: str) -> str:
    """What a quantity has one number of: "row", or the tokens of "token", "chosen_token", "rejected_token".

    >>> [counted_by(name) for name in ("reward", "n_tokens", "old_token_log_ratio", "ref_chosen_token_logps")]
    ['row', 'row', 'token', 'chosen_token']
    """
    if "token_" not in quantity:
        return "row"
    return next((f"{side}_token" for side in ("chosen", "rejected") if f"{side}_token" in quantity), "token")


def positions(row: "Tensor") -> "Tensor":
    """How many tokens of the same row stand before each token, (tokens,); rows are runs of one number.

    >>> import torch
    >>> positions(torch.tensor([0, 0, 0, 1, 2, 2]))
    tensor([0, 1, 2, 0, 0, 1])
    """
    at = row.new_ones(row.shape).cumsum(0) - 1
    starts = row.new_ones(row.shape).bool()
    starts[1:] = row[1:] != row[:-1]
    return at - (at * starts).cummax(0).values if len(row) else at


def per_row(values: "Tensor", row: "Tensor", like: "Tensor") -> "Tensor":
    """Sums of token values over each row, of the shape of `like` (n,)."""
    return values.new_zeros(like.shape).index_add(0, row, values)


def given(batch: Pairs | Completions, quantity: str) -> "Tensor":
    """A quantity of a batch, or ValueError where the batch was built without it."""
    value = getattr(batch, quantity)
    if value is None:
        raise ValueError(f"this batch has no {quantity}: the rule needs it, so fill it when the batch is built")
    return value


def weighted_mean(values: "Tensor", weight: "Tensor") -> "Tensor":
    """The mean of `values` (n,) where each row counts `weight` (n,) times; 0 where all weights are 0."""
    return (weight * values).sum() / weight.sum().clamp(min=1e-30)
