"""Where the short forms of "Unifying RLHF Objectives" part from the published ones, by hand arithmetic."""

import math

import pytest
import torch

from rlhf_data import rules
from rlhf_data.rules import Completions, Pairs
from tests.rules.batches import tensor


def pair(c=0.0, r=0.0, c0=0.0, r0=0.0, *, n=1, m=1, **fields) -> Pairs:
    one = tensor([1.0])
    return Pairs(
        tensor([c]),
        tensor([r]),
        one,
        tensor([c0]),
        tensor([r0]),
        preference=one,
        chosen_n_tokens=torch.tensor([n]),
        rejected_n_tokens=torch.tensor([m]),
        **{name: tensor([value]) for name, value in fields.items()},
    )


def answers(log_ratio: list[float], reward: list[float] | None = None, **fields) -> Completions:
    zeros = tensor([0.0] * len(log_ratio))
    given = {} if reward is None else {"reward": tensor(reward)}
    return Completions(tensor(log_ratio), zeros + 1, ref_logps=zeros, **given, **fields)


def weight(name: str, batch, **parameters) -> float:
    weights = rules.rule(name, **parameters)(batch)
    return (weights.chosen if isinstance(weights, tuple) else weights).tolist()[0]


def rejected(name: str, batch, **parameters) -> float:
    return rules.rule(name, **parameters)(batch).rejected.tolist()[0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("ratio", "reward", "short", "published"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.3, 1.0, 0.0, 0.0),  # good enough already
        (1.3, -1.0, 0.0, -1.3),  # bad and likelier than it was: only the published form pushes it down
        (0.7, -1.0, -0.7, 0.0),  # bad and already unlikelier: only the short form goes on
    ],
)
def test_ppo_clips_a_bad_answer_on_the_other_side(ratio, reward, short, published):
    batch = answers([math.log(ratio)], [reward])
    assert weight("seed.ppo", batch, clip=0.2) == pytest.approx(short)
    assert weight("ppo", batch, clip_low=0.2, clip_high=0.2) == pytest.approx(published)


def test_dual_clip_lets_a_runaway_go():
    batch = answers([math.log(4)], [-1.0])
    assert weight("ppo", batch) == pytest.approx(-4)
    assert weight("ppo_dual_clip", batch, clip_bad=3.0) == 0


def test_dpo_has_beta_twice_where_the_short_form_has_none():
    batch = pair(c=3.0, r=1.0)
    assert weight("seed.dpo", batch) == pytest.approx(sigmoid(-2))
    assert weight("dpo", batch, beta=0.1) == pytest.approx(0.1 * sigmoid(-0.2))
    assert weight("dpo", batch, beta=1.0) == pytest.approx(weight("seed.dpo", batch))


def test_kto_takes_the_implicit_reward_and_pushes_bad_answers_down():
    zeros = tensor([0.0, 0.0])
    batch = answers(
        [3.0, 3.0],
        [3.0, 0.0],
        label=torch.tensor([True, False]),
        policy_mismatched_logps=zeros,
        ref_mismatched_logps=zeros,
    )
    slope = sigmoid(3) * sigmoid(-3)
    assert rules.rule("seed.kto")(batch).tolist() == pytest.approx([0.25, slope])  # given reward − mean log-ratio
    assert rules.rule("kto", beta=1.0)(batch).tolist() == pytest.approx([slope, -slope])


def test_apa_has_a_factor_2_and_a_temperature():
    batch = answers([0.5], [1.0])
    assert weight("seed.apa", batch) == pytest.approx(0.5)
    assert weight("apa", batch, temperature=1.0) == pytest.approx(1.0)
    assert weight("apa", batch, temperature=0.1) == pytest.approx(2 * (10 - 0.5))


def test_rrhf_ranks_by_log_prob_a_token():
    batch = pair(c=-10.0, r=-8.0, n=10, m=2)  # likelier a token, unlikelier as a whole
    assert (weight("seed.rrhf", batch), rejected("seed.rrhf", batch)) == (2, 1)
    assert (weight("rrhf", batch), rejected("rrhf", batch)) == (1, 0)
    assert rejected("rrhf", batch, length_power=0.0) == 1
    assert rejected("seed.rrhf", batch, beta=math.exp(-3)) == 0  # its threshold is on the ratio of probabilities
    assert weight("seed.rrhf", batch, beta=math.e) == weight("slic", batch, delta=1.0, sft_weight=1.0)


def test_c_rlft_reads_a_label_where_the_short_form_reads_the_side():
    assert (weight("seed.c_rlft", pair()), rejected("seed.c_rlft", pair())) == (1, -0.1)
    batch = answers([0.0, 0.0], label=torch.tensor([True, False]), n_tokens=torch.tensor([2, 6]))
    assert rules.rule("c_rlft", reduction="sum")(batch).tolist() == pytest.approx([1, 0.1])
    # 1 · 2 and 0.1 · 6 tokens count: 2.6 over 2 rows.
    assert rules.rule("c_rlft")(batch).tolist() == pytest.approx([1 / 1.3, 0.1 / 1.3])


def test_vpg_has_a_baseline_and_sft_a_reduction():
    batch = answers([0.0, 0.0], [1.0, 3.0], n_tokens=torch.tensor([1, 3]))
    assert rules.rule("seed.vpg")(batch).tolist() == [1, 3]
    assert rules.rule("vpg", baseline=2.0)(batch).tolist() == [-1, 1]
    assert rules.rule("reinforce")(batch).tolist() == pytest.approx([-1, 1])
    assert rules.rule("seed.sft")(batch).tolist() == [1, 1]
    assert rules.rule("sft")(batch).tolist() == pytest.approx([0.5, 0.5])


def test_the_policy_as_a_reward_model_is_cpo_without_imitation():
    batch = pair(c=-2.0, r=-1.0)
    assert weight("seed.rm", batch) == pytest.approx(sigmoid(1))
    assert weight("seed.rm", batch) == pytest.approx(weight("cpo", batch, beta=1.0, sft_weight=0.0))
    assert weight("seed.unlikelihood", batch) == rejected("seed.unlikelihood", batch) == 1


# Published rules that are easily taken for one another.


def test_a_longer_chosen_answer_gets_less_weight_under_rdpo():
    longer, shorter = (weight("rdpo", pair(n=n, m=m), length_penalty=0.1) for n, m in ((20, 5), (5, 20)))
    assert longer < weight("dpo", pair()) < shorter


def test_ipo_asks_its_margin_of_the_sum_and_ipo_avg_of_the_mean():
    batch = pair(c=5.0, n=10, m=10)  # a log-ratio margin of 5 nats, half a nat a token
    assert weight("ipo", batch, tau=0.1) == pytest.approx(0)
    assert weight("ipo_avg", batch, tau=0.1) == pytest.approx(2 * (5 - 0.5) / 10)


def test_cdpo_turns_back_where_robust_dpo_goes_on():
    batch = pair(c=100.0)
    assert weight("cdpo", batch, beta=0.1, label_smoothing=0.1) == pytest.approx(0.1 * (sigmoid(-10) - 0.1))
    assert weight("robust_dpo", batch, beta=0.1, label_smoothing=0.1) > 0
    soft = Pairs(**(vars(batch) | {"preference": tensor([0.9])}))
    assert weight("dpo", soft, beta=0.1) == pytest.approx(weight("cdpo", batch, beta=0.1, label_smoothing=0.1))


def test_dpop_lifts_a_chosen_answer_that_fell_below_its_reference():
    fell = pair(c=-1.0, r=-60.0)
    assert weight("dpop", fell, penalty=50.0) == pytest.approx(51 * rejected("dpop", fell, penalty=50.0))
    risen = pair(c=1.0, r=-60.0)
    assert weight("dpop", risen) == pytest.approx(weight("dpo", risen))


def test_apo_down_pushes_the_chosen_answer_down_too():
    far = pair(c=0.0, r=-50.0)
    assert weight("apo_down", far) < 0 < weight("apo_zero", far)


def test_aot_compares_a_pair_with_the_reference_margin_of_its_rank():
    batch = Pairs(
        policy_chosen_logps=tensor([3.0, 1.0]),
        policy_rejected_logps=tensor([0.0, 0.0]),
        weight=tensor([1.0, 1.0]),
        ref_chosen_logps=tensor([1.0, 3.0]),
        ref_rejected_logps=tensor([0.0, 0.0]),
        preference=tensor([1.0, 1.0]),
    )
    assert rules.rule("aot", beta=1.0)(batch).chosen.tolist() == pytest.approx([0.5, 0.5])
    assert rules.rule("dpo", beta=1.0)(batch).chosen.tolist() == pytest.approx([sigmoid(-2), sigmoid(2)])


def test_orpo_stays_finite_where_the_policy_is_certain():
    certain = pair(c=0.0, r=-5.0)
    assert weight("orpo", certain, ratio_weight=1.0) == pytest.approx(
        1 + math.exp(-5) / (math.exp(-5) * 0 + 1 - math.exp(-5)), rel=1e-5
    )
    assert math.isfinite(rejected("orpo", pair(c=-5.0, r=0.0)))


def test_orpo_has_its_pole_on_the_rejected_side_only():
    # As P₊ → 1, w₊ → (1 + λ P₋/(1 − P₋))/n₊; as P₋ → 1, w₋ grows without bound.
    other = math.exp(-0.7)
    near = [pair(c=-gap, r=-0.7) for gap in (1e-3, 1e-6)]
    limit = 1 + 0.5 * other / (1 - other)
    assert weight("orpo", near[1], ratio_weight=0.5) == pytest.approx(limit, rel=1e-5)
    assert weight("orpo", near[0], ratio_weight=0.5) == pytest.approx(limit, rel=1e-2)
    poles = [rejected("orpo", pair(c=-0.7, r=-gap), ratio_weight=0.5) for gap in (1e-3, 1e-6)]
    assert poles[1] == pytest.approx(1000 * poles[0], rel=1e-2)


def test_odpo_does_not_push_equally_good_answers_apart():
    weights = [weight("odpo", pair(margin=gap), beta=0.1) for gap in (1.0, 1e-3, 0.0)]
    assert weights[0] == pytest.approx(0.05)
    assert weights[1] == pytest.approx(0.1 * 1e-3 / (1 + 1e-3))  # σ(log m) = m/(1 + m)
    assert weights[2] == pytest.approx(0, abs=1e-29)


def test_beta_dpo_follows_its_own_mean():
    rule, batch = "beta_dpo_running", pair(c=10.0)
    memory = rules.remember(rule, batch, rules.memory(rule), beta=0.1, momentum=0.9)
    assert memory == {"threshold": pytest.approx(0.1)}  # (1 − 0.9) · 0.1 · 10
    now = 0.1 * (1 + 0.6 * (1.0 - 0.1))
    assert rules.rule(rule)(batch, memory).chosen.tolist() == pytest.approx([now * sigmoid(-now * 10)])
    assert weight("beta_dpo", batch, threshold=0.1) == pytest.approx(now * sigmoid(-now * 10))


def test_bco_starts_as_the_pair_form_and_then_measures_from_its_mean():
    batch = answers([2.0, 2.0], label=torch.tensor([True, False]))
    assert rules.rule("bco", beta=1.0)(batch).tolist() == pytest.approx([sigmoid(-2), -sigmoid(2)])
    sides = pair(c=2.0, r=2.0)
    assert (weight("bco_pair", sides, beta=1.0), rejected("bco_pair", sides, beta=1.0)) == pytest.approx(
        (sigmoid(-2), sigmoid(2))
    )
    memory = rules.remember("bco", batch, {"delta": 5.0, "seen": 1.0}, beta=1.0)
    assert memory == {"delta": pytest.approx((5 + 2 + 2) / 3), "seen": 3.0}
    assert rules.rule("bco", beta=1.0)(batch, memory).tolist() == pytest.approx([sigmoid(1), -sigmoid(-1)])


# Token by token.


def one_row(values: list[float], **fields) -> Completions:
    """One completion whose tokens have these log-probs, 0 under every other policy."""
    logps = tensor(values)
    zeros = torch.zeros_like(logps)
    return Completions(
        logps.sum()[None],
        tensor([1.0]),
        n_tokens=torch.tensor([len(values)]),
        ref_logps=tensor([0.0]),
        old_logps=tensor([0.0]),
        policy_token_logps=logps,
        ref_token_logps=zeros,
        old_token_logps=zeros,
        token_row=torch.zeros(len(values), dtype=torch.long),
        **fields,
    )


def token_weights(name: str, batch: Completions, **parameters) -> list[float]:
    return rules.rule(name, **parameters)(batch).tokens.tolist()


def test_unlikelihood_pushes_likely_tokens_hardest_where_the_short_form_pushes_all_alike():
    batch = one_row([math.log(0.9), math.log(0.5), math.log(0.1)], label=torch.tensor([False]))
    assert token_weights("unlikelihood_unpaired", batch) == pytest.approx([-9, -1, -1 / 9])
    assert rejected("seed.unlikelihood", pair()) == 1


def test_ppo_clips_token_by_token():
    batch = one_row([math.log(1.5), math.log(0.5)], reward=tensor([1.0]))
    assert token_weights("ppo_token", batch, reduction="sum") == pytest.approx([0, 0.5])  # the first is good enough
    assert rules.rule("ppo_old")(batch).tolist() == pytest.approx([0.75])  # 1.5 · 0.5 is inside


@pytest.mark.parametrize("name", ["ppo", "apa", "grpo"])
def test_of_one_token_the_token_form_is_the_form_of_completions(name):
    batch = answers(
        [0.1, -0.3, 0.5, 2.0],
        [1.0, -1.0, 3.0, 0.5],
        old_logps=tensor([0.2, 0.1, 0.0, -0.5]),
        group=torch.tensor([0, 0, 1, 1]),
        n_tokens=torch.tensor([1, 1, 1, 1]),
    )
    tokens = {f"{who}_token_logps": getattr(batch, f"{who}_logps") for who in ("policy", "ref", "old")}
    batch = Completions(**(vars(batch) | tokens | {"token_row": torch.arange(4)}))
    assert token_weights(f"{name}_token", batch) == pytest.approx(rules.rule(f"{name}_old")(batch).tolist())


def test_dft_learns_a_token_as_much_as_it_is_believed():
    batch = one_row([math.log(0.9), math.log(0.01)])
    assert token_weights("dft", batch, reduction="sum") == pytest.approx([0.9, 0.01])
    assert rules.rule("sft", reduction="sum")(batch).tolist() == [1]


def long_and_short(alpha: float):
    batch = Pairs(
        *(tensor([v]) for v in (-3.0, -1.0, 1.0, 0.0, 0.0)),
        preference=tensor([1.0]),
        chosen_n_tokens=torch.tensor([3]),
        rejected_n_tokens=torch.tensor([1]),
        policy_chosen_token_logps=tensor([-1.0, -1.0, -1.0]),
        policy_rejected_token_logps=tensor([-1.0]),
        ref_chosen_token_logps=tensor([0.0, 0.0, 0.0]),
        ref_rejected_token_logps=tensor([0.0]),
        chosen_token_row=torch.tensor([0, 0, 0]),
        rejected_token_row=torch.tensor([0]),
    )
    return batch, rules.rule("ld_dpo", beta=1.0, alpha=alpha)(batch)


def test_ld_dpo_discounts_the_tail_in_the_margin_and_in_the_gradient():
    batch, whole = long_and_short(1.0)
    assert whole.chosen.tolist() == pytest.approx([weight("dpo", batch, beta=1.0)] * 3)
    _, shared = long_and_short(0.0)
    assert shared.chosen.tolist() == pytest.approx([0.5, 0, 0]) and shared.rejected.tolist() == pytest.approx([0.5])
    _, half = long_and_short(0.5)  # margin −1 − ½ − ½ + 1 = −1
    assert half.chosen.tolist() == pytest.approx([sigmoid(1), sigmoid(1) / 2, sigmoid(1) / 2])


# Groups.


def group_of(reward: list[float], group: list[int] | None = None, **fields) -> Completions:
    n = len(reward)
    ones = torch.ones(n, dtype=torch.long)
    return answers([0.0] * n, reward, n_tokens=ones, group=torch.tensor(group or [0] * n), **fields)


def test_rloo_leaves_the_answer_itself_out_of_its_baseline():
    assert rules.rule("rloo")(group_of([3.0, 1.0, 2.0])).tolist() == pytest.approx([1.5, -1.5, 0])
    assert rules.rule("grpo", spread="none")(group_of([3.0, 1.0, 2.0])).tolist() == pytest.approx([1, -1, 0])
    assert rules.rule("rloo")(group_of([3.0, 1.0], [0, 1])).tolist() == [0, 0]


def test_grpo_offers_both_deviations_and_both_ways_with_a_group_of_one():
    batch = group_of([3.0, 1.0, 5.0], [0, 0, 1])
    assert rules.rule("grpo")(batch).tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0], rel=1e-5)
    assert rules.rule("grpo", spread="population")(batch).tolist() == pytest.approx([1, -1, 0], rel=1e-5)
    assert rules.rule("grpo", single="reward")(batch).tolist()[2] == pytest.approx(5)
    equal = rules.rule("grpo")(group_of([2.0, 2.0]))
    assert equal.tolist() == [0, 0]


def test_grpo_is_pulled_back_to_its_reference():
    far = answers([1.0, -1.0], [1.0, 1.0], n_tokens=torch.tensor([1, 1]), group=torch.tensor([0, 0]))
    assert rules.rule("grpo", kl_weight=0.1)(far).tolist() == pytest.approx(
        [-0.1 * (1 - math.exp(-1)), 0.1 * (math.e - 1)]
    )
    assert rules.rule("k3", coefficient=0.1)(far).tolist() == pytest.approx(
        rules.rule("grpo", kl_weight=0.1)(far).tolist()
    )


def test_raft_imitates_the_best_and_equals_share():
    assert rules.rule("raft")(group_of([1.0, 4.0, 4.0, 0.0], [0, 0, 0, 1])).tolist() == [0, 0.5, 0.5, 1]


def test_rrhf_of_two_answers_is_the_paired_form():
    logps, lengths = tensor([-10.0, -4.0]), torch.tensor([2, 4])
    batch = Completions(
        logps, tensor([1.0, 1.0]), n_tokens=lengths, reward=tensor([1.0, 0.0]), group=torch.tensor([3, 3])
    )
    two = pair(c=-10.0, r=-4.0, n=2, m=4)
    assert rules.rule("rrhf_group")(batch).tolist() == pytest.approx([weight("rrhf", two), -rejected("rrhf", two)])
    heavy = rules.rule("rrhf_group", rank_weight=100.0)(batch).tolist()
    assert heavy == pytest.approx([100 / 2 + 1, -100 / 4])


def test_cispo_goes_on_where_ppo_lets_go():
    batch = answers([math.log(3)], [1.0])
    assert weight("ppo", batch) == 0
    assert weight("cispo", batch, clip_high=1.0) == pytest.approx(2)


@pytest.mark.parametrize(
    "name", ["vpg", "seed.vpg", "ppo", "ppo_old", "cispo", "apa", "apa_old", "rloo", "grpo", "sppo"]
)
def test_an_unpaired_rule_pushes_a_bad_answer_down_and_a_good_one_up(name):
    batch = group_of([-2.0, 2.0], old_logps=tensor([0.0, 0.0]))
    bad, good = rules.rule(name)(batch).tolist()
    assert bad < 0 < good


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_a_labelled_rule_pushes_undesirable_answers_down(name):
    zeros = tensor([0.0, 0.0])
    batch = group_of([0.0, 0.0], label=torch.tensor([False, True]))
    batch = Completions(**(vars(batch) | {"policy_mismatched_logps": zeros, "ref_mismatched_logps": zeros}))
    bad, good = rules.rule(name)(batch).tolist()
    assert bad < 0 < good


def test_wpo_counts_a_pair_by_how_likely_the_policy_was_to_write_it():
    batch = pair(c=-2.0, r=-4.0, n=2, m=2, policy_chosen_mean_log_p2=-0.5, policy_rejected_mean_log_p2=-0.25)
    likely = math.exp((-1 + 0.5) + (-2 + 0.25))
    assert weight("wpo", batch) == pytest.approx(likely * weight("dpo", batch))
    sure = pair(c=-0.1, r=-0.1, n=1, m=1, policy_chosen_mean_log_p2=-3.0, policy_rejected_mean_log_p2=-3.0)
    assert weight("wpo", sure) == pytest.approx(weight("dpo", sure))
    assert weight("wpo", sure, clamp="none") == pytest.approx(math.exp(5.8) * weight("dpo", sure))


def test_fdpo_alpha_runs_from_the_forward_kl_to_dpo():
    batch = pair(c=1.0, r=-2.0)
    assert weight("fdpo_alpha", batch, alpha=1.0) == pytest.approx(weight("dpo", batch))
    assert weight("fdpo_alpha", batch, alpha=0.0) == pytest.approx(weight("fdpo_forward_kl", batch))
