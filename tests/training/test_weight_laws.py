"""What a row's weight means, and what it must not depend on, in the gradient of a whole step; for every rule.

The laws are equalities of gradients: they hold to 1e-5 of the gradient's norm in float32.
"""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

from rlhf_data import rules
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group, Layout
from rlhf_data.training import step
from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINABLE = [name for name in rules.RULES if not rules.scores(name)]  # the others push a head, not log-probs
# Answers to a prompt count once each in their group's mean or best, whatever they weigh, so a second copy of an answer
# is more than its weight doubled.
OF_GROUPS = [name for name in TRAINABLE if rules.keeps_groups(name)]
OTHERS = [name for name in TRAINABLE if name not in OF_GROUPS]
N = 5


@cache
def rows(table: str) -> Rows:
    """Five rows of random ids in uneven lengths, with every column that a rule can ask for; three prompts, or five."""
    random = torch.Generator().manual_seed(3)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 380, (n,), generator=random).tolist()

    sides = ("chosen_", "rejected_") if table == "paired" else ("",)
    prompts = [ids(n) for n in (9, 4, 7, 5, 12)]
    of = [0, 1, 2, 3, 4] if table == "paired" else [0, 1, 0, 2, 1]
    lengths = [[n + 3 * k for k in range(len(sides))] for n in (3, 6, 2, 9, 5)]
    groups = [Group(prompts[p], list(map(ids, ns))) for p, ns in zip(of, lengths, strict=True)]
    columns: dict[str, list] = {"weight": [1.0] * N, "prompt_id": [f"prompt-{p}" for p in of]}
    if table == "paired":
        columns |= {"preference": [1.0] * N, "margin": [0.5, 1.0, 0.2, 2.0, 0.8]}
    else:
        columns |= {"reward": [0.9, -0.3, 0.4, 0.1, -0.8], "label": [True, False, True, False, False]}
    mismatched = [Group(groups[i].prompt, [groups[(i + 1) % N].completions[0]]) for i in range(N)]
    with torch.no_grad():
        if table == "unpaired":
            measured = token_logps(tiny_model.model(1), mismatched, "packed")
            columns["ref_mismatched_logps"] = [float(one.sum()) for (one,) in measured]
        for who, seed in (("ref", 1), ("old", 2)):
            measured = token_logps(tiny_model.model(seed), groups, "packed")
            for column, side in enumerate(sides):
                if who == "ref" or not side:  # no rule knows who wrote a pair
                    columns[f"{who}_{side}logps"] = [float(row[column].sum()) for row in measured]
                    columns[f"{who}_{side}token_logps"] = [row[column].tolist() for row in measured]
    return Rows([f"row-{i}" for i in range(N)], groups, [] if table == "paired" else mismatched, columns, {})


def weighing(given: Rows, *weights: float) -> Rows:
    return Rows(given.ids, given.groups, given.mismatched, given.columns | {"weight": list(weights)}, {})


policy = cache(tiny_model.model)


def gradient(
    rule: str, given: Rows, picked: Sequence[int], layout: Layout = "packed", budget: int = 2048
) -> torch.Tensor:
    model = policy()
    model.zero_grad(set_to_none=True)
    if "mismatched_id" not in rules.columns(rule):
        given = Rows(given.ids, given.groups, [], given.columns, {})
    accumulate(Policy(model, layout, budget), given, picked, rule, {})
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@cache
def of_all(rule: str, *weights: float) -> torch.Tensor:
    """The gradient of a step of all rows, of these weights."""
    return gradient(rule, weighing(rows(rules.table(rule)), *weights), range(N))


ONES, UNEVEN = (1.0,) * N, (1, 2, 0.5, 1, 3)


def assert_equal(rule: str, one: torch.Tensor, other: torch.Tensor) -> None:
    size = float(other.norm())
    assert size > 0, f"{rule} has no gradient here: the law says nothing"
    assert float((one - other).norm()) < 1e-5 * size


@pytest.mark.parametrize("rule", OTHERS)
def test_a_row_of_weight_two_is_that_row_twice(rule):
    given = rows(rules.table(rule))
    assert_equal(rule, of_all(rule, 1, 2, 1, 1, 1), gradient(rule, given, [0, 1, 1, 2, 3, 4]))


@pytest.mark.parametrize("rule", OTHERS)
def test_a_row_of_weight_zero_is_absent(rule):
    given = rows(rules.table(rule))
    assert_equal(rule, of_all(rule, 1, 1, 1, 0, 1), gradient(rule, given, [0, 1, 2, 4]))


@pytest.mark.parametrize("rule", OF_GROUPS)
def test_an_answers_weight_scales_its_own_part_of_the_step_and_no_other(rule):
    one, two, three = (sum(w) * of_all(rule, *w) for w in weights_of_row(1))
    assert float((two - one).norm()) > 0
    assert_equal(rule, three + one, 2 * two)


def weights_of_row(at: int) -> list[list[float]]:
    """All weights 1 but that of one row: 1, 2 and 3."""
    return [[float(w) if i == at else 1.0 for i in range(N)] for w in (1, 2, 3)]


@pytest.mark.parametrize("rule", TRAINABLE)
def test_a_common_factor_of_all_weights_changes_nothing(rule):
    assert_equal(rule, of_all(rule, *[3.0] * N), of_all(rule, *ONES))


@pytest.mark.parametrize("rule", TRAINABLE)
def test_padded_batches_have_the_gradient_of_packs(rule):
    given = weighing(rows(rules.table(rule)), *UNEVEN)
    assert_equal(rule, gradient(rule, given, range(N), "padded"), of_all(rule, *UNEVEN))


@pytest.mark.parametrize("rule", TRAINABLE)
def test_a_step_in_many_forwards_has_the_gradient_of_one(rule):
    given = weighing(rows(rules.table(rule)), *UNEVEN)
    assert_equal(rule, gradient(rule, given, range(N), budget=1), of_all(rule, *UNEVEN))


@pytest.mark.parametrize("rule", TRAINABLE)
def test_the_order_of_rows_in_a_step_changes_nothing(rule):
    given = weighing(rows(rules.table(rule)), *UNEVEN)
    assert_equal(rule, gradient(rule, given, [3, 0, 4, 2, 1]), of_all(rule, *UNEVEN))


@pytest.mark.parametrize("rule", [name for name in TRAINABLE if rules.table(name) == "paired"])
def test_a_prompt_that_runs_once_has_the_gradient_of_one_that_runs_with_each_answer(rule, monkeypatch):
    given, shared = weighing(rows("paired"), *UNEVEN), of_all(rule, *UNEVEN)
    for name in ("token_logps", "token_logps_and_squares"):
        monkeypatch.setattr(step, name, alone(getattr(step, name)))
    assert_equal(rule, gradient(rule, given, range(N)), shared)


def alone(measure: Callable) -> Callable:
    """The same measurement with each completion in a group of its own."""

    def measured(model: torch.nn.Module, groups: Sequence[Group], layout: Layout) -> object:
        singles = [Group(group.prompt, [one]) for group in groups for one in group.completions]
        made = measure(model, singles, layout)

        def again(values: list) -> list:
            flat = iter(one for (one,) in values)
            return [[next(flat) for _ in group.completions] for group in groups]

        return tuple(map(again, made)) if isinstance(made, tuple) else again(made)

    return measured
