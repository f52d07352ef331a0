"""Every rule against its published loss, written here a second time."""

import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs
from rlhf_data.training.loss import weighted_loss

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "policy_logps")


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


nats = st.floats(-5000, 0, allow_nan=False)
weight = st.floats(0.01, 100)


@st.composite
def pairs(draw) -> Pairs:
    n = draw(st.integers(1, 6))

    def column(values: st.SearchStrategy) -> Tensor:
        return tensor(draw(st.lists(values, min_size=n, max_size=n)))

    return Pairs(
        column(nats), column(nats), column(weight), column(nats), column(nats), preference=column(st.floats(0.5, 1))
    )


@st.composite
def completions(draw) -> Completions:
    n = draw(st.integers(1, 6))

    def column(values: st.SearchStrategy) -> Tensor:
        return tensor(draw(st.lists(values, min_size=n, max_size=n)))

    return Completions(
        policy_logps=column(nats),
        weight=column(weight),
        n_tokens=column(st.integers(1, 500)).long(),
        label=column(st.booleans()).bool(),
        ref_logps=column(nats),
        policy_mismatched_logps=column(nats),
        ref_mismatched_logps=column(nats),
    )


def batches(name: str) -> st.SearchStrategy:
    return pairs() if rules.table(name) == "paired" else completions()


def published(name: str, batch: Pairs | Completions) -> Tensor:
    """The published loss of each row, by the papers' formulas, β = 0.1 and both KTO weights 1."""
    if isinstance(batch, Pairs):
        assert name == "dpo" and batch.ref_chosen_logps is not None and batch.ref_rejected_logps is not None
        margin = (batch.policy_chosen_logps - batch.ref_chosen_logps) - (
            batch.policy_rejected_logps - batch.ref_rejected_logps
        )
        p = batch.preference
        return -p * functional.logsigmoid(0.1 * margin) - (1 - p) * functional.logsigmoid(-0.1 * margin)
    if name == "sft":
        mean_tokens = (batch.weight * batch.n_tokens).sum() / batch.weight.sum()
        return -batch.policy_logps / mean_tokens
    assert name == "kto" and batch.label is not None
    reward = batch.policy_logps - batch.ref_logps
    kl = (batch.weight * (batch.policy_mismatched_logps - batch.ref_mismatched_logps)).sum() / batch.weight.sum()
    kl = torch.relu(kl).detach()
    return torch.where(batch.label, 1 - torch.sigmoid(0.1 * (reward - kl)), 1 - torch.sigmoid(0.1 * (kl - reward)))


def with_graph(batch: Pairs | Completions) -> tuple[Pairs | Completions, list[Tensor]]:
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    leaves = {name: fields[name].clone().requires_grad_() for name in LOGPS if name in fields}
    return type(batch)(**(fields | leaves)), list(leaves.values())


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(leaf) if g is None else g
        for leaf, g in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True)
    ]


def reordered(batch: Pairs | Completions, order: list[int]) -> Pairs | Completions:
    return type(batch)(**{name: None if value is None else value[order] for name, value in vars(batch).items()})


def flat(weights) -> Tensor:
    return torch.cat(list(weights)) if isinstance(weights, tuple) else weights


@pytest.mark.parametrize("name", rules.RULES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_gradient_of_weighted_loss_is_that_of_the_published_loss(name, data):
    batch, leaves = with_graph(data.draw(batches(name)))
    total = float(batch.weight.sum())
    ours = gradients(weighted_loss(batch, rules.rule(name)(batch), normaliser=total), leaves)
    theirs = gradients((batch.weight * published(name, batch)).sum() / total, leaves)
    for mine, other in zip(ours, theirs, strict=True):
        # 1 − σ(x) in the published KTO loss loses the far tail that the rule keeps: below 1e-16 both are zero.
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("name", rules.RULES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_reported_loss_is_the_published_one(name, data):
    batch = data.draw(batches(name))
    torch.testing.assert_close(rules.loss(name)(batch), published(name, batch), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", rules.RULES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_weights_and_losses_are_finite_at_gaps_of_thousands_of_nats(name, dtype, data):
    batch = data.draw(batches(name))
    cast = {k: v.to(dtype) if v is not None and v.is_floating_point() else v for k, v in vars(batch).items()}
    batch = type(batch)(**cast)
    assert flat(rules.rule(name)(batch)).isfinite().all()
    assert rules.loss(name)(batch).isfinite().all()


@pytest.mark.parametrize("name", rules.RULES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_weights_follow_the_order_of_the_batch(name, data):
    batch = data.draw(batches(name))
    order = data.draw(st.permutations(range(len(batch.weight))))
    expected = rules.rule(name)(batch)
    got = rules.rule(name)(reordered(batch, order))
    parts = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for mine, whole in parts:
        torch.testing.assert_close(mine, whole[order], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", rules.RULES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_row_of_weight_two_counts_as_two_rows_and_one_of_weight_zero_as_none(name, data):
    batch = data.draw(batches(name))
    n = len(batch.weight)
    whole = torch.ones(n, dtype=torch.float64)
    repeated = type(batch)(**(vars(batch) | {"weight": whole}))
    twice = reordered(repeated, [*range(n), 0])
    weighted = type(batch)(**(vars(batch) | {"weight": torch.cat([whole[:1] * 2, whole[1:]])}))
    zeroed = type(batch)(**(vars(twice) | {"weight": torch.cat([whole, whole[:1] * 0])}))
    assert_same_gradient(name, twice, weighted, fold=n)
    assert_same_gradient(name, zeroed, repeated, fold=n)


def assert_same_gradient(name, longer, shorter, *, fold: int) -> None:
    """Gradients of `longer`, its last row's added to its first's, are those of `shorter`."""
    long_batch, long_leaves = with_graph(longer)
    short_batch, short_leaves = with_graph(shorter)
    total = float(longer.weight.sum())
    long = gradients(weighted_loss(long_batch, rules.rule(name)(long_batch), normaliser=total), long_leaves)
    short = gradients(weighted_loss(short_batch, rules.rule(name)(short_batch), normaliser=total), short_leaves)
    for mine, other in zip(long, short, strict=True):
        folded = mine[:fold].clone()
        folded[0] += mine[fold]
        torch.testing.assert_close(folded, other, rtol=1e-9, atol=1e-18)


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
        ("dppo", {}, "no rule named 'dppo': did you mean 'dpo'.*known rules: sft, kto, dpo"),
        ("dpo", {"slope": 1}, "dpo has no parameter 'slope'.*it has: beta"),
        ("dpo", {"betta": 1}, "did you mean 'beta'"),
        ("dpo", {"beta": 0}, "dpo: beta is 0: it must be a finite number > 0"),
        ("dpo", {"beta": float("nan")}, "beta is nan"),
        ("dpo", {"beta": "0.1"}, "beta is '0.1'"),
        ("dpo", {"beta": True}, "beta is True"),
        ("kto", {"desirable_weight": -1}, "desirable_weight is -1: it must be a finite number >= 0"),
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
