"""Further tables in the same optimizer step, each with its own rule, coefficient and order of rows.

    ∇L = ∇L_main + Σ_k coefficient_k · ∇L_k

as PPO with a pretraining loss (PPO-ptx: Ouyang et al. 2022, arXiv:2203.02155, equation 2) or DPO beside SFT. Each part
is normalised by the row weights of its own rows, so a coefficient says what it says whatever the batch sizes are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from rlhf_data import rules
from rlhf_data.order import batches_from
from rlhf_data.training import metrics, planned
from rlhf_data.training.batches import Rows, manifest_of, rows_of
from rlhf_data.training.gate import check_encoding, check_tokens, first_rows
from rlhf_data.training.step import Policy, accumulate

# Rows of a part, which of them are wanted and what its rule reads → rows as the rule will see them, and where they are.
Seen = Callable[[Policy, Rows, Sequence[int], Sequence[str]], tuple[Rows, Sequence[int]]]


@dataclass(frozen=True)
class Part:
    """One table beside the main one."""

    name: str
    rule: rules.Rule
    parameters: dict[str, Any]
    coefficient: float
    batch_size: int
    seed: int
    rows: Rows
    recipe: dict[str, Any] | None  # how the snapshot's references were scored
    ahead: dict[int, Iterator[list[int]]] = field(default_factory=dict, compare=False)  # from the step after the last

    def picked(self, step: int) -> list[int]:
        """Rows of the optimizer step `step` (from 0): a function of it and the seed alone.

        Raises:
            ValueError: see `batches_from`.
        """
        demands = planned.demands(self.rows, self.rule)._asdict()
        made = self.ahead.get(step) or batches_from(
            step, self.rows.ids, size=self.batch_size, seed=self.seed, **demands
        )
        self.ahead.clear()
        self.ahead[step + 1] = made
        return next(made)


def identify(blend: Sequence[Mapping[str, Any]], *, batch_size: int) -> list[dict[str, Any]]:
    """What a run's arguments say of each part: all that decides its gradients; parts that count nothing are not there.

    Args:
        blend: for each part "snapshot" (its folder), "rule", and at will "name", "coefficient" (1), "batch_size" and
            "parameters" of the rule.
        batch_size: of parts that say none.

    Raises:
        ValueError: no snapshot, a coefficient that is no number >= 0, a batch size below 1, or two parts of one name.
    """
    parts = []
    for item in blend:
        if unknown := item.keys() - {"snapshot", "name", "rule", "parameters", "coefficient", "batch_size"}:
            raise ValueError(f"a part of a blend has no {', '.join(sorted(unknown))}")
        folder, factor = Path(item["snapshot"]), item.get("coefficient", 1.0)
        rows = item.get("batch_size") or batch_size
        if not (0 <= factor < math.inf and rows >= 1):
            raise ValueError(f"coefficient is {factor}, batch_size {rows}: they must be >= 0 and >= 1")
        manifest, rule = manifest_of(folder), item["rule"]
        given = item.get("parameters") or {}
        rules.check_parameters(rule, given)
        parts.append(
            {
                "name": item.get("name") or manifest.get("name") or folder.name,
                "snapshot": manifest.get("id", folder.name),
                "content_hash": manifest.get("content_hash"),
                "rule": rule,
                "parameters": rules.parameters(rule) | given,
                "coefficient": factor,
                "batch_size": rows,
            }
        )
    names = [part["name"] for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two parts of the blend are named {', '.join(twice)}: give each a name of its own")
    return [part for part in parts if part["coefficient"]]


def read(
    blend: Sequence[Mapping[str, Any]],
    identities: Sequence[dict[str, Any]],
    split: str,
    *,
    model: dict[str, Any],
    cache: Path,
    seed: int,
    encoding: dict[str, Any],
    stored: Callable[[Sequence[str]], Sequence[str]] = tuple,
) -> list[Part]:
    """The rows of each part as token ids, which are kept with its snapshot.

    Args:
        blend: as of `identify`.
        identities: what `identify` made of it.
        split: which part of each snapshot is trained on.
        model: reference of the policy.
        cache: folder for digests, and for token ids that cannot stand beside their snapshot.
        seed: of the run; each part's order has a seed of its own, made of it and the part's name.
        encoding: template, max_length, max_prompt_length.
        stored: of the columns that a rule reads, those that the snapshot must hold.

    Raises:
        ValueError: a snapshot that does not serve its rule; the message begins with the part's name.
    """
    counted = [Path(item["snapshot"]) for item in blend if item.get("coefficient", 1.0)]
    parts = []
    for folder, one in zip(counted, identities, strict=True):
        rule, recipe = one["rule"], manifest_of(folder).get("score")
        filled = tuple(stored(rules.columns(rule)))
        try:
            if any(column.startswith(("ref_", "old_")) for column in filled):
                check_encoding(recipe, encoding)
                check_tokens(first_rows(folder, split), recipe, model, encoding, cache)
            rows = rows_of(folder, split, rule, filled=filled, model=model, cache=cache, **encoding)
        except ValueError as error:
            raise ValueError(f"blend {one['name']}: {error}") from error
        kept = {key: one[key] for key in ("name", "rule", "parameters", "coefficient", "batch_size")}
        own = xxh3_64_intdigest(f"blend:{seed}:{one['name']}".encode())
        parts.append(Part(**kept, seed=own, rows=rows, recipe=recipe))
    return parts


def accumulate_parts(
    policy: Policy, parts: Sequence[Part], step: int, memories: Mapping[str, dict[str, float]], seen: Seen
) -> tuple[dict[str, Any], int, dict[str, dict[str, float]]]:
    """Add each part's gradient, times its coefficient, to the model's.

    Args:
        policy: the model, whose gradients grow.
        parts: what is blended in.
        step: optimizer steps done before this one.
        memories: what each part's rule remembers, by the part's name.
        seen: what a rule is shown of rows, as a moving reference adds its log-probs.

    Returns:
        Metrics by the part's name, the tokens that ran, and what the rules remember now.

    Raises:
        ValueError: a loss that is no number; names the rows.
    """
    lines: dict[str, Any] = {}
    after: dict[str, dict[str, float]] = {}
    tokens = 0
    for part in parts:
        picked = part.picked(step)
        rows, at = seen(policy, part.rows, picked, rules.columns(part.rule))
        before = memories.get(part.name) or rules.memory(part.rule)
        done = accumulate(policy, rows, at, part.rule, part.parameters, before, coefficient=part.coefficient)
        line = metrics.step_metrics(done.batch, done.weights, rows, at, part.rule, part.parameters, done.memory)
        if not math.isfinite(line["loss"]):
            ids = ", ".join(part.rows.ids[i] for i in picked)
            raise ValueError(f"blend {part.name}: loss {line['loss']} is no number: look at these rows: {ids}")
        lines[part.name] = line | {"coefficient": part.coefficient}
        after[part.name] = done.memory
        tokens += done.tokens
    return lines, tokens, after
