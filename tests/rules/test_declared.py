"""Rules that a spec declares: formulas, sums, and functions of one's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import rules
from rlhf_data.rules import TokenWeights, formula
from rlhf_data.rules.batch import counted_by, quantities
from tests.rules.batches import drawn, replaced, rich, tensor

pytestmark = pytest.mark.usefixtures("one_thread")
PUSH = "beta * sigmoid(-beta * log_ratio_margin)"
SIMPO = "b * sigmoid(g - b * (c / n_plus - r / n_minus))"
DPOP = "b * sigmoid(-b * (D - l * max(0, c0 - c)))"


def declared(*texts: str, **constants: float) -> dict:
    sides = ("chosen", "rejected") if len(texts) == 2 else ("completion",)
    return dict(zip(sides, texts, strict=True)) | constants


@settings(deadline=None, max_examples=50)
@given(data=st.data(), beta=st.floats(0.01, 10))
def test_declared_dpo_has_the_bits_of_dpo(data, beta):
    batch = data.draw(drawn("dpo", extreme=True))
    certain = replaced(batch, preference=torch.ones_like(batch.weight))
    mine = rules.rule(declared(PUSH, PUSH, beta=beta))(certain)
    built_in = rules.rule("dpo", beta=beta)(certain)
    assert torch.equal(mine.chosen, built_in.chosen) and torch.equal(mine.rejected, built_in.rejected)


@pytest.mark.parametrize(
    ("name", "texts", "constants"),
    [
        ("dpo", ["beta * (p - sigmoid(beta * D))"] * 2, {"beta": 0.1}),
        ("ipo", ["2 * (1 / (2 * tau) - D)"] * 2, {"tau": 0.1}),
        ("hinge", ["where(beta * D < 1, beta, 0)"] * 2, {"beta": 0.1}),
        ("slic", [f"where(c - r < 1, 1, 0){more}" for more in (" + k", "")], {"k": 0.1}),
        ("simpo", [f"{SIMPO} / n_plus", f"{SIMPO} / n_minus"], {"b": 2.0, "g": 1.0}),
        ("dpop", [f"{DPOP} * (1 + where(c < c0, l, 0))", DPOP], {"b": 0.1, "l": 50.0}),
        ("odpo", ["beta * sigmoid(log(m) - beta * D)"] * 2, {"beta": 0.1}),
        ("ppo", ["where((R > 0 and exp(a) < 1 + e) or (R < 0 and exp(a) > 1 - e), exp(a) * R, 0)"], {"e": 0.2}),
        ("apa", ["2 * (R - a)"], {}),
        ("apo_zero_unpaired", ["where(label, 1, -1) * b * sigmoid(b * a) * sigmoid(-b * a)"], {"b": 0.1}),
        ("seed.c_rlft", ["1", "-0.1"], {}),
        ("seed.vpg", ["R"], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_formula_gives_the_weights_of_the_rule_that_it_writes_down(name, texts, constants):
    batch = rich(name)
    mine, theirs = rules.rule(declared(*texts, **constants))(batch), rules.rule(name)(batch)
    for left, right in zip(*((w if isinstance(w, tuple) else (w,)) for w in (mine, theirs)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 ** 2", 19),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("(1 + 2) * 3", 9),
        ("7 / 2 - 1", 2.5),
        ("min(3, 1, 2) + max(3, 1, 2)", 4),
        ("clip(5, 0, 2) + clip(-5, 0, 2)", 2),
        ("where(1 < 2 <= 2, 3, 4)", 3),
        ("where(not 1 < 2 or 2 != 2, 3, 4)", 4),
        ("sigmoid(0) + tanh(0) + log(1) + exp(0) + log1p(0) + expm1(0) + sqrt(4) + abs(-1)", 4.5),
        ("logsigmoid(0)", -math.log(2)),
        ("sigmoid(-800) + sigmoid(800)", 1),
    ],
)
def test_numbers_and_tensors_are_computed_alike(text, value):
    batch = rich("seed.vpg")
    assert rules.rule(declared(text))(batch).tolist() == pytest.approx([value] * 8)
    assert rules.rule(declared(f"where(R == R, {text}, 0)"))(batch).tolist() == pytest.approx([value] * 8)


@settings(deadline=None, max_examples=50)
@given(x=st.floats(-50, 50), y=st.floats(0.1, 50), low=st.floats(-3, 0), high=st.floats(0, 3))
def test_functions_of_tensors_are_those_of_numbers(x, y, low, high):
    batch = replaced(rich("seed.vpg"), reward=tensor([x] * 8), policy_logps=tensor([y] * 8))
    for text in (
        "sigmoid({x})", "logsigmoid({x})", "tanh({x})", "exp({x})", "expm1({x})", "log({y})", "log1p({y})", "sqrt({y})",
        "abs({x})", "min({x}, {y})", "max({x}, {y}, low)", "clip({x}, low, high)", "where({x} > low, {x}, {y})",
        "{y} ** {x}", "{x} / {y} - {x} * {y}", "where({x} < {y} and not {x} > high, 1, {y})",
    ):  # fmt: skip
        constants = {key: value for key, value in (("low", low), ("high", high)) if key in text}
        of_rows = rules.rule(declared(text.format(x="R", y="c"), **constants))(batch)
        numbers = declared(text.format(x=f"({x!r})", y=f"({y!r})"), **constants)
        torch.testing.assert_close(of_rows, rules.rule(numbers)(batch), rtol=1e-12, atol=1e-300)


def test_a_length_divides_in_full_precision():
    batch = replaced(rich("seed.vpg"), n_tokens=torch.tensor([3] * 8))
    assert rules.rule(declared("1 / n"))(batch).tolist() == [1 / 3] * 8


@pytest.mark.parametrize("table", ["paired", "unpaired"])
def test_a_short_symbol_is_the_quantity_that_it_stands_for(table):
    batch = rich("odpo" if table == "paired" else "vpg")
    for symbol, quantity in formula.SYMBOLS[table].items():
        texts = ["1 * {}"] * (2 if table == "paired" else 1)
        short, long = (rules.rule(declared(*(t.format(s) for t in texts))) for s in (symbol, quantity))
        assert all(torch.equal(a, b) for a, b in zip(short(batch), long(batch), strict=True)), symbol
    # Constants and symbols never mean two things.
    assert not formula.SYMBOLS[table].keys() & set(quantities(table))


WRONG = [
    ("log_ratio_margn", 0, "unknown symbol 'log_ratio_margn': did you mean 'log_ratio_margin'"),
    ("1 + betta", 4, "unknown symbol 'betta': did you mean 'beta'"),
    ("1 / 0", 0, "cannot be computed: float division by zero"),
    ("2 * log(0)", 4, "cannot be computed"),
    ("2 * (0 - 1) ** 0.5", 4, "cannot be computed"),
    ("9 ** 9 ** 9 ** 9", 5, "cannot be computed"),
    ("a +", 3, "is no formula"),
    ("(a", 0, "is no formula"),
    ("a < 3", 0, "says true or false where a number is wanted; write where"),
    ("1 + (a < 3)", 5, "a number is wanted, this is true or false"),
    ("where(a, 1, 2)", 6, "a condition is wanted"),
    ("foo(a)", 0, "no function 'foo'"),
    ("sigmod(a)", 0, "no function 'sigmod': did you mean 'sigmoid'"),
    ("1 + sigmoid", 4, "sigmoid is a function: write sigmoid"),
    ("sigmoid(a, d)", 0, "sigmoid takes 1 arguments, not 2"),
    ("min(a)", 0, "min takes 2 or more arguments, not 1"),
    ("sigmoid(x=a)", 0, "the arguments of sigmoid have no names"),
    ("sigmoid(*a)", 8, "has no place in a formula"),
    ("a.shape", 0, "quantities have no parts"),
    ("a[0]", 0, "speaks of one row at a time"),
    ("1 if a < 0 else 2", 0, "write where"),
    ("a ^ 2", 0, r"write \*\* for a power"),
    ("a & d", 0, "write and"),
    ("a // d", 0, "has no place in a formula"),
    ("'text'", 0, "has no place in a formula"),
    ("1j", 0, "is no number"),
    ("True", 0, "is no number"),
    ("lambda: 1", 0, "has no place in a formula"),
    ("(a := 1)", 1, "has no place in a formula"),
    ("[x for x in a]", 0, "has no place in a formula"),
    ("__import__('os').system('true')", 0, "has no place in a formula|no function"),
    ("().__class__", 0, "quantities have no parts"),
    ("2 * weight", 4, "the row's weight multiplies the loss of every rule already"),
    ("2 * label", 4, "label is a quantity of the unpaired table"),
    ("chosen_token_position", 0, "is not one number a row"),
    ("β * ü", 0, "unknown symbol 'β'"),
]


@pytest.mark.parametrize(("text", "column", "message"), WRONG, ids=[text for text, *_ in WRONG])
def test_a_wrong_formula_is_refused_where_it_is_wrong(text, column, message):
    with pytest.raises(ValueError, match=message) as caught:
        rules.rule({"chosen": text, "rejected": "beta", "beta": 0.1})
    _, shown, pointer = str(caught.value).split("\n")
    assert shown == f"    {text}"
    assert pointer.index("^") - 4 == column


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"chosen": "", "rejected": "1"}, "chosen is empty"),
        ({"chosen": "1+" * 2000 + "1", "rejected": "1"}, "longer than 2000 characters"),
        ({"chosen": "(" * 900 + "1" + ")" * 900, "rejected": "1"}, "too many nested|nested too deeply"),
        ({"chosen": "-" * 1900 + "1", "rejected": "1"}, "nested too deeply"),
        ({"chosen": True, "rejected": "1"}, "chosen is True: write a formula"),
        ({"chosen": "a", "rejected": "d", "completion": "R"}, "either completion, or chosen and rejected"),
        ({"chosen": "a", "rejected": "d", "D": 1.0}, "D is a quantity of the paired table"),
        ({"chosen": "a", "rejected": "d", "exp": 1.0}, "'exp' is no name for a constant"),
        ({"chosen": "a", "rejected": "d", "beta": 1.0}, "beta stands in no formula of this rule"),
        (
            {"chosen": "beta", "rejected": "d", "beta": "0.1"},
            "beta is '0.1': a constant of a formula is a finite number",
        ),
        ({"chosen": "beta", "rejected": "d", "beta": float("inf")}, "beta is inf"),
        ({"loss": "a"}, "a rule is a name, module:function"),
        (7, "a rule is a name, module:function"),
    ],
)
def test_a_wrong_declaration_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        rules.needs(rule)


def test_a_formula_says_what_it_needs_as_any_rule_does():
    rule = declared("b * sigmoid(-b * D) + k", "b * sigmoid(-b * D)", b=0.1, k=1.0)
    assert rules.table(rule) == "paired" and rules.needs(rule) == ("log_ratio_margin",)
    assert rules.columns(rule) == ("ref_chosen_logps", "ref_rejected_logps")
    assert rules.parameters(rule) == {"b": 0.1, "k": 1.0}
    assert not rules.honours_preference(rule) and rules.honours_preference(declared("p", "p"))
    assert rules.is_static(declared("R")) and not rules.is_static(declared("a"))
    assert (
        rules.rule(rule, b=0.2)(rich("dpo")).chosen.tolist()
        == rules.rule(rule | {"b": 0.2})(rich("dpo")).chosen.tolist()
    )


def test_a_loss_that_names_no_quantity_is_one_number_a_row():
    batch = rich("dpo")
    constant = declared("1", "0.5") | {"loss": "2"}
    torch.testing.assert_close(rules.loss(constant)(batch), torch.full_like(batch.weight, 2.0).double())


def test_a_formula_reports_its_own_loss_or_the_surrogate():
    batch = rich("dpo")
    surrogate = rules.loss(declared("a", "2"))(batch)
    torch.testing.assert_close(
        surrogate, 2 * batch.policy_rejected_logps - batch.chosen_log_ratio * batch.policy_chosen_logps
    )
    with_loss = declared(PUSH, PUSH, beta=0.1) | {"loss": "-logsigmoid(beta * D)"}
    certain = replaced(batch, preference=torch.ones_like(batch.weight))
    torch.testing.assert_close(rules.loss(with_loss)(certain), rules.loss("dpo")(certain))


# Sums.


def test_dpo_and_a_little_imitation_is_rpo():
    batch = replaced(rich("dpo"), preference=torch.ones(8, dtype=torch.float64))
    both = {"sum": [{"rule": "dpo", "beta": 0.2}, {"rule": "sft", "coefficient": 0.3, "reduction": "row_mean"}]}
    mine, theirs = rules.rule(both)(batch), rules.rule("rpo", beta=0.2, sft_weight=0.3)(batch)
    torch.testing.assert_close(mine.chosen, theirs.chosen)
    torch.testing.assert_close(mine.rejected, theirs.rejected)
    torch.testing.assert_close(rules.loss(both)(batch), rules.loss("rpo", beta=0.2, sft_weight=0.3)(batch))


def test_a_sum_of_token_rules_and_row_rules_weighs_tokens():
    batch = rich("unlikelihood")
    rule = {"sum": [{"rule": "seed.unlikelihood", "coefficient": 2.0}, {"rule": "unlikelihood"}, {"rule": "dft"}]}
    weights, own = rules.rule(rule)(batch), rules.rule("unlikelihood")(batch)
    imitated = batch.policy_chosen_token_logps.exp() / float(
        (batch.weight * batch.chosen_n_tokens).sum() / batch.weight.sum()
    )
    torch.testing.assert_close(weights.chosen, 2 + own.chosen + imitated)
    torch.testing.assert_close(weights.rejected, 2 + own.rejected)
    assert rules.weighs_tokens(rule)


def test_a_rule_of_ones_own_that_names_the_group_sees_a_whole_step():
    assert rules.averages_over_batch("tests.rules.own_rules:above_the_group")
    assert not rules.averages_over_batch("tests.rules.own_rules:twice_dpo")


def test_completions_are_summed_too():
    batch = rich("rloo")
    rule = {"sum": [{"rule": "rloo"}, {"rule": "k3", "coefficient": 0.5}]}
    torch.testing.assert_close(rules.rule(rule)(batch), rules.rule("rloo")(batch) + 0.5 * rules.rule("k3")(batch))
    assert rules.keeps_groups(rule) and rules.averages_over_batch(rule) and rules.table(rule) == "unpaired"
    tokens = rules.rule({"sum": [{"rule": "dft"}, {"rule": "seed.vpg"}]})(rich("dft"))
    assert isinstance(tokens, TokenWeights)


def test_a_sum_honours_preferences_where_all_its_terms_do():
    assert rules.honours_preference({"sum": [{"rule": "dpo"}, {"rule": "dpo", "beta": 1.0}]})
    assert not rules.honours_preference({"sum": [{"rule": "dpo"}, {"rule": "ipo"}]})


def test_a_sum_in_a_sum_is_a_sum():
    inner = {"sum": [{"rule": "dpo"}, {"rule": "ipo", "coefficient": 0.5}]}
    outer = {"sum": [{"rule": inner, "coefficient": 2.0}]}
    batch = rich("dpo")
    torch.testing.assert_close(rules.rule(outer)(batch).chosen, 2 * rules.rule(inner)(batch).chosen)


# Functions of one's own.


def test_a_function_of_ones_own_is_a_rule():
    name = "tests.rules.own_rules:twice_dpo"
    batch = replaced(rich("dpo"), preference=torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(rules.rule(name, beta=0.3)(batch).chosen, 2 * rules.rule("dpo", beta=0.3)(batch).chosen)
    assert rules.table(name) == "paired" and rules.parameters(name) == {"beta": 0.1}
    assert rules.columns(name) == ("ref_chosen_logps", "ref_rejected_logps")
    assert rules.modules({"sum": [{"rule": name}]}) == ("tests.rules.own_rules",)


def test_quantities_are_counted_by_rows_or_by_tokens():
    names = {name for table in ("paired", "unpaired") for name in quantities(table)}
    by_token = {name for name in names if counted_by(name) != "row"}
    assert by_token == {name for name in names if "token_" in name}
    assert "n_tokens" not in by_token and "token_row" in by_token
