"""What a rule sees, and what it gives: log-probs of a batch in, one weight a completion out.

Log-probs are in nats, summed over the tokens of a completion. `Pairs` and `Completions` hold what was measured;
quantities that follow from it are properties, written once. A rule names what it needs by the property's name.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Ranges of hyperparameters: `rule()` reads them off a function's signature. A plain float may be any finite number.
Positive = Annotated[float, "> 0"]
NotNegative = Annotated[float, ">= 0"]
Above1 = Annotated[float, "> 1"]
BelowHalf = Annotated[float, ">= 0", "< 0.5"]
InsideHalf = Annotated[float, "> 0", "< 0.5"]


class PairWeights(NamedTuple):
    """The coefficients of ∇log π(y₊) and of −∇log π(y₋), each (n,)."""

    chosen: "Tensor"
    rejected: "Tensor"


@dataclass(frozen=True)
class Pairs:
    """n preferences; every tensor is (n,).

    `preference` is the probability that the chosen completion is the better one, `weight` what a row counts for,
    `margin` the gap of the two rewards, at least 0. The token counts are of the completions.
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


@dataclass(frozen=True)
class Completions:
    """n completions; every tensor is (n,).

    The mismatched log-probs are of another prompt's completion after this row's prompt: they say how far the policy
    has moved from the reference on text that no row teaches. `n_tokens` counts the completion's tokens. `reward` is
    how good the completion is, larger is better; policy-gradient rules take it as the advantage.
    """

    policy_logps: "Tensor"
    weight: "Tensor"
    n_tokens: "Tensor | None" = None
    label: "Tensor | None" = None
    reward: "Tensor | None" = None
    ref_logps: "Tensor | None" = None
    policy_mismatched_logps: "Tensor | None" = None
    ref_mismatched_logps: "Tensor | None" = None

    @property
    def log_ratio(self) -> "Tensor":
        """The completion's log π(y)/π_ref(y)."""
        return self.policy_logps - given(self, "ref_logps")

    @property
    def mismatched_log_ratio(self) -> "Tensor":
        """The mismatched completion's log π(y')/π_ref(y')."""
        return given(self, "policy_mismatched_logps") - given(self, "ref_mismatched_logps")


_PAIR_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")

# The columns of a snapshot that may be empty and that a quantity cannot do without.
COLUMNS: dict[str, tuple[str, ...]] = {
    "chosen_log_ratio": ("ref_chosen_logps",),
    "rejected_log_ratio": ("ref_rejected_logps",),
    "log_ratio_margin": _PAIR_REFERENCES,
    "mean_log_ratio_margin": _PAIR_REFERENCES,
    "ref_logp_margin": _PAIR_REFERENCES,
    "margin": ("margin",),
    "log_ratio": ("ref_logps",),
    "mismatched_log_ratio": ("mismatched_id", "ref_mismatched_logps"),
    "label": ("label",),
    "reward": ("reward",),
}


# Quantities that are known before the policy runs: what was measured without it, and what follows from that alone.
STATIC = frozenset(
    field.name for kind in (Pairs, Completions) for field in fields(kind) if not field.name.startswith("policy_")
) | {"ref_logp_margin"}


def given(batch: Pairs | Completions, quantity: str) -> "Tensor":
    """A quantity of a batch, or ValueError where the batch was built without it."""
    value = getattr(batch, quantity)
    if value is None:
        raise ValueError(f"this batch has no {quantity}: the rule needs it, so fill it when the batch is built")
    return value


def weighted_mean(values: "Tensor", weight: "Tensor") -> "Tensor":
    """The mean of `values` (n,) where each row counts `weight` (n,) times; 0 where all weights are 0."""
    return (weight * values).sum() / weight.sum().clamp(min=1e-30)
