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
