"""Every rule against its published loss, written a second time in losses.py."""

import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs, PairTokenWeights, TokenWeights
from rlhf_data.training.loss import weighted_loss
from tests.laws.raw import CASES
from tests.rules.batches import (
    LOGPS,
    REMEMBERED,
    WHOLE_WEIGHTS,
    by_row,
    drawn,
    hyperparameters,
    picked,
    replaced,
    rich,
    tensor,
)
from tests.rules.losses import LOSSES, published

pytestmark = pytest.mark.usefixtures("one_thread")

AVERAGING = [name for name in rules.RULES if rules.averages_over_batch(name)]
# Losses that are squares of nats: where the target is hit, what is left of thousands of nats is their rounding.
SQUARES = {
    "ipo", "ipo_avg", "cpo_ipo", "rpo_sq", "rpo_fwd_kl", "sppo_hard", "sppo", "apa", "apa_old", "apa_token", "seed.apa",
    "exo", "rm", "rm_margin", "k3", "grpo", "grpo_old", "grpo_token", "rloo", "reinforce",
}  # fmt: skip
# A group's mean and best count each answer once, whatever it weighs.
GROUPED = [name for name in rules.RULES if rules.keeps_groups(name)]


def atol(name: str) -> float:
    # Below it, 1 − σ(x) in a published loss has lost the tail that the rule keeps.
    return 1e-10 if name in SQUARES else 1e-14


def with_graph(batch: Pairs | Completions) -> tuple[Pairs | Completions, list[Tensor]]:
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    leaves = {name: fields[name].clone().requires_grad_() for name in LOGPS if name in fields}
    return type(batch)(**(fields | leaves)), list(leaves.values())


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(leaf) if g is None else g
        for leaf, g in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True)
    ]


def both_gradients(name: str, batch: Pairs | Completions, values: dict, change=lambda weights: weights) -> list:
    """(ours, the published loss's) for each side; `change` falsifies our weights."""
    live, leaves = with_graph(batch)
    total = float(batch.weight.sum())
    remembered = REMEMBERED.get(name)
    weights = change(rules.rule(name, **values)(live, remembered))
    ours = gradients(weighted_loss(live, weights, normaliser=total), leaves)
    theirs = gradients((batch.weight * published(name, live, values, remembered)).sum() / total, leaves)
    return list(zip(ours, theirs, strict=True))


def flat(weights) -> Tensor:
    return torch.cat(list(weights)) if isinstance(weights, tuple) else weights


def parts(weights) -> list[Tensor]:
    return list(weights) if isinstance(weights, tuple) else [weights]


def each_row(weights, batch: Pairs | Completions) -> list[list[Tensor]]:
    """The weights of each row, a list for each side."""
    n = len(batch.weight)
    if isinstance(weights, TokenWeights):
        return [by_row(weights.tokens, batch.token_row, n)]
    if isinstance(weights, PairTokenWeights):
        rows = (batch.chosen_token_row, batch.rejected_token_row)
        return [by_row(side, row, n) for side, row in zip(weights, rows, strict=True)]
    return [[side[i : i + 1] for i in range(n)] for side in parts(weights)]


def has_no_ties(name: str, batch: Pairs | Completions) -> bool:
    """Whether the ranks of a batch are distinct; where they are not, the loss of a sorted batch has no gradient."""
    if name not in WHOLE_WEIGHTS:
        return True
    assert isinstance(batch, Pairs)
    sides = [batch.logp_margin] if name == "aot" else [batch.chosen_log_ratio, batch.rejected_log_ratio]
    return all(len(side.unique()) == len(side) for side in sides)


few = settings(deadline=None, max_examples=CASES // 5)  # each law of each of the rules


@pytest.mark.parametrize("name", rules.RULES)
@few
@given(data=st.data())
def test_the_gradient_of_weighted_loss_and_the_reported_loss_are_the_published_ones(name, data):
    batch, values = data.draw(drawn(name)), data.draw(hyperparameters(name))
    assume(has_no_ties(name, batch))
    for mine, other in both_gradients(name, batch, values):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=atol(name))
    reported = rules.loss(name, **values)(batch, REMEMBERED.get(name))
    expected = published(name, batch, values, REMEMBERED.get(name))
    torch.testing.assert_close(reported, expected, rtol=1e-9, atol=atol(name))


MUTANTS = {
    "its sign": lambda w: -w,
    "a factor": lambda w: w * 1.001,
    "nothing": lambda w: w * 0,
    "its neighbour's": lambda w: w.roll(1),
    "without a row": lambda w: torch.cat([w[:-1], w[-1:] * 0]),
}


@pytest.mark.parametrize("name", rules.RULES)
def test_a_wrong_weight_would_be_seen(name):
    batch, values = rich(name), rules.parameters(name)
    right = rules.rule(name, **values)(batch, REMEMBERED.get(name))
    for mine, other in both_gradients(name, batch, values):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-14)
    caught = set()
    for mutant, change in MUTANTS.items():
        for side in range(len(parts(right))):

            def falsify(weights, change=change, side=side):
                changed = [change(w) if i == side else w for i, w in enumerate(parts(weights))]
                return type(weights)(*changed) if isinstance(weights, tuple) else changed[0]

            if torch.equal(flat(falsify(right)), flat(right)):
                continue  # as all weights are equal, or the last one is 0
            gaps = both_gradients(name, batch, values, falsify)
            assert not all(torch.allclose(m, o, rtol=1e-9, atol=1e-14) for m, o in gaps), f"{mutant} of side {side}"
            caught.add(mutant)
    assert caught >= {"its sign", "a factor", "nothing"}


@pytest.mark.parametrize("name", rules.RULES)
def test_every_hyperparameter_matters(name):
    defaults, batch = rules.parameters(name), rich(name)
    spaces = {p.name: get_args(p.annotation) for p in inspect.signature(rules.RULES[name]).parameters.values()}

    def weigh(**values) -> Tensor:
        # Two equal steps: what the first left in memory shows in the second.
        memory = rules.remember(name, batch, rules.memory(name), **values)
        memory = rules.remember(name, batch, memory, **values)
        return flat(rules.rule(name, **values)(batch, memory))

    for key, value in defaults.items():
        others = (
            list(spaces[key])
            if isinstance(value, str)
            else [0.499, 1.0]
            if key == "threshold"
            else [value * 0.3 + 0.01, value * 4 + 1, 0.3]
        )
        weights = []
        for other in others:
            try:
                weights.append(weigh(**{key: other}))
            except ValueError:
                continue  # out of range
        assert any(not torch.equal(w, weigh()) for w in weights), key


@pytest.mark.parametrize("name", rules.RULES)
@few
@given(data=st.data())
def test_weights_and_losses_are_finite_at_gaps_of_thousands_of_nats(name, data):
    drawn_batch, values = data.draw(drawn(name, extreme=True)), data.draw(hyperparameters(name))
    for dtype in (torch.float32, torch.float64):
        floats = {k: v.to(dtype) for k, v in vars(drawn_batch).items() if v is not None and v.is_floating_point()}
        batch = replaced(drawn_batch, **floats)
        assert flat(rules.rule(name, **values)(batch)).isfinite().all()
        assert rules.loss(name, **values)(batch).isfinite().all()


@pytest.mark.parametrize("name", rules.RULES)
def test_weights_and_losses_are_finite_where_everything_is_zero(name):
    batch = rich(name)
    given = {k: v for k, v in vars(batch).items() if v is not None and k != "weight" and not k.endswith("token_row")}
    zeros = {k: torch.ones_like(v) if "n_tokens" in k else torch.zeros_like(v) for k, v in given.items()}
    for zero in (replaced(batch, **zeros), replaced(batch, **zeros, weight=batch.weight * 0)):
        assert flat(rules.rule(name)(zero)).isfinite().all()
        assert rules.loss(name)(zero).isfinite().all()


@pytest.mark.parametrize("name", rules.RULES)
@few
@given(data=st.data())
def test_weights_follow_the_order_of_the_batch(name, data):
    batch = data.draw(drawn(name))
    order = data.draw(st.permutations(range(len(batch.weight))))
    expected = rules.rule(name)(batch)
    got = rules.rule(name)(picked(batch, order))
    # A sum over rows rounds by their order; a row's own weight does not.
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if name in AVERAGING else {"rtol": 0, "atol": 0}
    for mine, whole in zip(each_row(got, picked(batch, order)), each_row(expected, batch), strict=True):
        torch.testing.assert_close(torch.cat(mine), torch.cat([whole[i] for i in order]), **tolerance)


@pytest.mark.parametrize("name", [name for name in rules.RULES if name not in AVERAGING])
def test_a_rule_that_does_not_average_over_its_batch_weighs_each_row_alone(name):
    batch = rich(name)
    together = each_row(rules.rule(name)(batch), batch)
    for i in range(len(batch.weight)):
        for mine, whole in zip(parts(rules.rule(name)(picked(batch, [i]))), together, strict=True):
            torch.testing.assert_close(mine, whole[i], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_rule_that_averages_over_its_batch_does(name):
    means = rules.parameters(name).get("reduction") and name != "rrhf_group"
    values = {"reduction": "token_mean"} if means else {}
    batch, few = rich(name), [0, 3, 6]

    def weigh(batch) -> list[list[Tensor]]:
        memory = rules.remember(name, batch, rules.memory(name), **values)
        return each_row(rules.rule(name, **values)(batch, memory), batch)

    sides = zip(weigh(batch), weigh(picked(batch, few)), strict=True)
    assert any(not torch.allclose(torch.cat([w[i] for i in few]), torch.cat(v)) for w, v in sides)


@pytest.mark.parametrize("name", rules.RULES)
def test_a_rule_is_static_exactly_where_the_policy_changes_nothing(name):
    batch = rich(name)
    shift = torch.linspace(-9, 9, len(batch.weight), dtype=torch.float64)
    fields = {
        k: v + (torch.linspace(-9, 9, len(v), dtype=torch.float64) if "token" in k else shift)
        for k, v in vars(batch).items()
        if (k.startswith("policy_") or k == "chosen_score") and v is not None
    }
    if isinstance(batch, Pairs):
        fields["policy_rejected_logps"] = batch.policy_rejected_logps - shift
    before, after = flat(rules.rule(name)(batch)), flat(rules.rule(name)(replaced(batch, **fields)))
    assert torch.equal(before, after) is rules.is_static(name)


@pytest.mark.parametrize("name", [name for name in rules.RULES if name not in GROUPED])
@few
@given(data=st.data())
def test_a_row_of_weight_two_counts_as_two_rows_and_one_of_weight_zero_as_none(name, data):
    batch = data.draw(drawn(name))
    n = len(batch.weight)
    whole = torch.ones(n, dtype=torch.float64)
    repeated = replaced(batch, weight=whole)
    twice = picked(repeated, [*range(n), 0])
    weighted = replaced(batch, weight=torch.cat([whole[:1] * 2, whole[1:]]))
    zeroed = replaced(twice, weight=torch.cat([whole, whole[:1] * 0]))
    assert_same_gradient(name, twice, weighted)
    assert_same_gradient(name, zeroed, repeated)


def assert_same_gradient(name, longer, shorter) -> None:
    """Gradients of `longer`, its last row's added to its first's, are those of `shorter`."""
    long, short = gradients_of(name, longer, longer), gradients_of(name, shorter, longer)
    for mine, other in zip(long, short, strict=True):
        folded, again = mine[: len(other)].clone(), mine[len(other) :]
        folded[: len(again)] += again
        torch.testing.assert_close(folded, other, rtol=1e-9, atol=1e-10 if name in AVERAGING else 1e-18)


def gradients_of(name, batch, normalised_as) -> list[Tensor]:
    live, leaves = with_graph(batch)
    memory = rules.remember(name, live, rules.memory(name))
    weights = rules.rule(name)(live, memory)
    return gradients(weighted_loss(live, weights, normaliser=float(normalised_as.weight.sum())), leaves)


@pytest.mark.parametrize("name", GROUPED)
@few
@given(data=st.data())
def test_an_answer_of_weight_zero_is_in_no_group_and_a_prompt_of_weight_two_counts_as_two(name, data):
    batch = data.draw(drawn(name))
    n = len(batch.weight)
    ones = torch.ones(n, dtype=torch.float64)
    first = batch.group == batch.group[0]
    other_prompt = replaced(batch, group=torch.where(first, 7, batch.group))
    doubled = replaced(batch, weight=ones + first)
    again = [i for i in range(n) if first[i]]
    twice = picked(replaced(batch, weight=ones), [*range(n), *again])
    as_another = replaced(twice, group=torch.cat([other_prompt.group, batch.group[again]]))
    for mine, other in zip(gradients_of(name, doubled, doubled), gradients_of(name, as_another, doubled), strict=True):
        torch.testing.assert_close(mine.sum(), other.sum(), rtol=1e-9, atol=1e-9)
    absent = [i for i in range(n) if i != 0]
    if absent:
        zeroed = replaced(batch, weight=torch.cat([ones[:1] * 0, ones[1:]]))
        left = picked(replaced(batch, weight=ones), absent)
        for mine, other in zip(gradients_of(name, zeroed, left), gradients_of(name, left, left), strict=True):
            torch.testing.assert_close(mine[len(mine) - len(other) :], other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", rules.RULES)
def test_a_row_weight_multiplies_every_side_of_a_rule_alike(name):
    batch = rich(name)
    live, leaves = with_graph(batch)
    weights = rules.rule(name)(live)
    one = gradients(weighted_loss(live, weights, normaliser=1.0), leaves)
    tripled, more = with_graph(replaced(batch, weight=batch.weight * 3))
    three = gradients(weighted_loss(tripled, weights, normaliser=1.0), more)
    for mine, other in zip(three, one, strict=True):
        torch.testing.assert_close(mine, other * 3, rtol=1e-12, atol=0)
    assert sum(bool(leaf.abs().max() > 0) for leaf in one) == len(parts(weights))


def test_sft_means_what_its_reduction_says():
    batch = Completions(tensor([-2.0, -12.0]), tensor([1.0, 3.0]), n_tokens=torch.tensor([1, 4]))

    def value(reduction: str) -> float:
        return float(weighted_loss(batch, rules.rule("sft", reduction=reduction)(batch), normaliser=4.0))

    assert value("sum") == pytest.approx((2 + 3 * 12) / 4)
    assert value("row_mean") == pytest.approx((2 / 1 + 3 * 12 / 4) / 4)
    assert value("token_mean") == pytest.approx((2 + 3 * 12) / (1 + 3 * 4))


def test_kto_measures_from_the_mean_mismatched_log_ratio_but_never_from_below_zero():
    label, ones, zeros = torch.tensor([True, False]), tensor([1.0, 1.0]), tensor([0.0, 0.0])

    def weights(mismatched: list[float]) -> Tensor:
        batch = Completions(
            tensor([3.0, 3.0]),
            ones,
            label=label,
            ref_logps=zeros,
            ref_mismatched_logps=zeros,
            policy_mismatched_logps=tensor(mismatched),
        )
        return rules.rule("kto", beta=1.0)(batch)

    def slope(x: float) -> float:
        s = torch.sigmoid(tensor([x]))
        return float(s * (1 - s))

    assert weights([2.0, 4.0]).tolist() == pytest.approx([slope(0), -slope(0)])
    assert weights([-9.0, -1.0]).tolist() == pytest.approx([slope(3), -slope(3)])


def test_a_tie_is_left_alone_where_the_policy_is_the_reference():
    zeros = tensor([0.0])
    batch = Pairs(zeros, zeros, tensor([1.0]), zeros, zeros, preference=tensor([0.5]))
    assert rules.rule("dpo")(batch).chosen.tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "needs", "columns", "table", "honours"),
    [
        ("dpo", ("log_ratio_margin", "preference"), ("ref_chosen_logps", "ref_rejected_logps"), "paired", True),
        (
            "kto",
            ("log_ratio", "mismatched_log_ratio", "label", "weight"),
            ("ref_logps", "mismatched_id", "ref_mismatched_logps", "label"),
            "unpaired",
            False,
        ),
        ("sft", ("n_tokens", "weight"), (), "unpaired", False),
        ("odpo", ("log_ratio_margin", "margin"), ("ref_chosen_logps", "ref_rejected_logps", "margin"), "paired", False),
        (
            "aot",
            ("logp_margin", "ref_logp_margin", "weight"),
            ("ref_chosen_logps", "ref_rejected_logps"),
            "paired",
            False,
        ),
        ("slic", ("logp_margin",), (), "paired", False),
        ("ppo", ("log_ratio", "reward"), ("ref_logps", "reward"), "unpaired", False),
        ("seed.c_rlft", ("chosen_n_tokens",), (), "paired", False),
    ],
)
def test_a_rule_says_what_it_needs(name, needs, columns, table, honours):
    assert rules.needs(name) == needs
    assert rules.columns(name) == columns
    assert rules.table(name) == table
    assert rules.honours_preference(name) is honours


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("dpoo", {}, "no rule named 'dpoo': did you mean 'dpo'.*known rules: sft, .*, kto, .*, dpo, "),
        ("dpo", {"slope": 1}, "dpo has no parameter 'slope'.*it has: beta"),
        ("dpo", {"betta": 1}, "did you mean 'beta'"),
        ("dpo", {"beta": 0}, "dpo: beta is 0: it must be a finite number > 0"),
        ("dpo", {"beta": float("nan")}, "beta is nan"),
        ("dpo", {"beta": "0.1"}, "beta is '0.1'"),
        ("dpo", {"beta": True}, "beta is True"),
        ("kto", {"desirable_weight": -1}, "desirable_weight is -1: it must be a finite number >= 0"),
        ("cdpo", {"label_smoothing": 0.5}, "label_smoothing is 0.5: it must be a finite number >= 0 and < 0.5"),
        ("exo", {"label_smoothing": 0}, "label_smoothing is 0: it must be a finite number > 0 and < 0.5"),
        ("vpg", {"baseline": float("inf")}, "baseline is inf: it must be a finite number$"),
        ("ppo_dual_clip", {"clip_bad": 1}, "clip_bad is 1: it must be a finite number > 1"),
        ("sft", {"reduction": "mean"}, "reduction is 'mean': it must be one of sum, row_mean, token_mean"),
    ],
)
def test_a_wrong_rule_or_parameter_is_refused_with_the_known_ones(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        rules.rule(name, **parameters)


def test_a_batch_without_references_is_refused():
    zeros = tensor([0.0])
    with pytest.raises(ValueError, match="no ref_chosen_logps"):
        rules.rule("dpo")(Pairs(zeros, zeros, zeros, preference=zeros))


def test_quantities_of_different_shapes_are_refused():
    zeros = tensor([0.0, 0.0])
    with pytest.raises(ValueError, match=r"log_ratio_margin \(2,\), preference \(1,\)"):
        rules.rule("dpo")(Pairs(zeros, zeros, zeros, zeros, zeros, preference=zeros[:1]))


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_has_a_published_loss_with_the_same_hyperparameters(name):
    keyword = [
        {p.name: p.default for p in inspect.signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for f in (rules.RULES[name], rules.LOSSES[name])
    ]
    assert keyword[0] == keyword[1] == rules.parameters(name)


def test_rules_import_without_torch():
    code = "import sys; import rlhf_data.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_rule_has_a_loss_of_its_paper_to_be_held_against():
    assert rules.RULES.keys() == rules.LOSSES.keys() == LOSSES.keys()


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(rules.__path__)])
def test_the_examples_in_the_docstrings_are_true(module):
    outcome = doctest.testmod(import_module(f"rlhf_data.rules.{module}"))
    assert outcome.failed == 0


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_has_an_example(name):
    assert ">>>" in (rules.RULES[name].__doc__ or "")
