"""What a run has beside its table and its policy: a reference that moves, and further tables in the same step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlhf_data.training import averaging, blend
from rlhf_data.training.averaging import Moving
from rlhf_data.training.batches import Rows
from rlhf_data.training.blend import Part
from rlhf_data.training.gate import check_first_batch
from rlhf_data.training.step import Policy


@dataclass
class Beside:
    """Nothing at all, for most runs.

    Attributes:
        reference: one that follows the policy; None where the snapshot's log-probs are the reference.
        parts: tables that are blended in.
        memories: what the rule of each part remembers, by the part's name.
    """

    reference: Moving | None = None
    parts: Sequence[Part] = ()
    memories: dict[str, dict[str, float]] = field(default_factory=dict)

    def seen(
        self, policy: Policy, rows: Rows, picked: Sequence[int], columns: Sequence[str]
    ) -> tuple[Rows, Sequence[int]]:
        """The rows of a step as a rule that reads `columns` sees them, and where they stand."""
        if self.reference is None:
            return rows, picked
        return averaging.with_references(policy, self.reference, rows, picked, columns), range(len(picked))

    def accumulate(self, policy: Policy, step: int) -> tuple[dict[str, Any], int]:
        """Add the gradients of the parts of step `step` (from 0); their metrics under "blend", the tokens they ran."""
        if not self.parts:
            return {}, 0
        lines, tokens, self.memories = blend.accumulate_parts(policy, self.parts, step, self.memories, self.seen)
        return {"blend": lines}, tokens

    def after(self, steps: int) -> dict[str, Any]:
        """Move the reference, when `steps` updates are done and it is time; a metric that says whether."""
        return {} if self.reference is None else {"reference_moved": averaging.update(self.reference, steps)}

    def check(self, policy: Policy, ours: dict[str, Any]) -> None:
        """The gate of the first step, for the tables that are blended in; see `check_first_batch`."""
        for part in self.parts:
            try:
                check_first_batch(policy, part.rows, part.picked(0), part.recipe, ours)
            except ValueError as error:
                raise ValueError(f"blend {part.name}: {error}") from error

    @property
    def values(self) -> Sequence[Tensor]:
        """The numbers of a reference that moves."""
        return () if self.reference is None else self.reference.values
