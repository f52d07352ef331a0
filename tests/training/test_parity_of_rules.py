"""Rule by rule, the gradient of a step is that of TRL's loss of the same kind, on the same tokens."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rlhf_data import rules
from rlhf_data.rules import Pairs
from rlhf_data.scoring.logprobs import Group
from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import completions, pairs
from tests.training.test_parity import answer, columns, ref_logps, theirs, trainer

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


def gradient(rows: Rows, rule: str, parameters: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = tiny_model.model(0)
    accumulate(Policy(model, "packed", 2048), rows, range(len(rows)), rule, parameters)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_the_same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the largest entry: rules differ by orders of magnitude, and both sides are float32."""
    assert set(mine) == set(other)
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    for name, gradient in mine.items():
        torch.testing.assert_close(
            gradient, other[name], rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """TRL's trainer over four pairs, and the same pairs as our rows."""
    given = [
        {"prompt": row["prompt"], "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])}
        for row in pairs(N)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = trainer(DPOTrainer, DPOConfig, given, tmp_path_factory.mktemp("trl"))
    groups = [Group(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in peer.train_dataset]
    chosen, rejected = zip(*ref_logps(groups), strict=True)
    measured = {"preference": [1.0] * N, "ref_chosen_logps": list(chosen), "ref_rejected_logps": list(rejected)}
    return peer, Rows(list("abcd"), groups, [], columns(N) | measured, {})


def case(rule: str, loss_types: list[str], parameters: dict[str, Any], **settings: Any) -> Any:
    return pytest.param(rule, loss_types, parameters, settings, id=rule)


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own
@pytest.mark.parametrize(
    ("rule", "loss_types", "parameters", "settings"),
    [
        case("dpo", ["sigmoid"], {"beta": 0.3}),
        case("robust_dpo", ["robust"], {"beta": 0.3, "label_smoothing": 0.2}, label_smoothing=0.2),
        case("hinge", ["hinge"], {"beta": 0.3}),
        case("ipo_avg", ["ipo"], {"tau": 0.3}),
        case("exo", ["exo_pair"], {"beta": 0.3, "label_smoothing": 0.2}, label_smoothing=0.2),
        case("nca", ["nca_pair"], {"beta": 0.3}),
        case("bco_pair", ["bco_pair"], {"beta": 0.3}),
        case("sppo_hard", ["sppo_hard"], {"beta": 0.3}),
        case("aot", ["aot"], {"beta": 0.3}),
        case("aot_unpaired", ["aot_unpaired"], {"beta": 0.3}),
        case("apo_zero", ["apo_zero"], {"beta": 0.3}),
        case("apo_down", ["apo_down"], {"beta": 0.3}),
        case("discopop", ["discopop"], {"beta": 0.3, "tau": 0.05}),
        case("dpo_norm", ["sigmoid_norm"], {"beta": 0.3}),
        case("rpo", ["sigmoid", "sft"], {"beta": 0.3, "reduction": "token_mean"}, loss_weights=[1.0, 1.0]),
        case("fdpo_forward_kl", ["sigmoid"], {"beta": 0.3}, f_divergence_type="forward_kl"),
        case("fdpo_js", ["sigmoid"], {"beta": 0.3}, f_divergence_type="js_divergence"),
    ],
)  # fmt: skip
def test_a_paired_rule_has_the_gradient_of_trls_loss(rule, loss_types, parameters, settings, paired, monkeypatch):
    peer, rows = paired
    defaults = {"loss_weights": [1.0], "label_smoothing": 0.0, "f_divergence_type": "reverse_kl"}
    for name, value in {**defaults, **settings, "loss_types": loss_types}.items():
        monkeypatch.setattr(peer, name, value)
    peer.model.zero_grad(set_to_none=True)
    assert_the_same(gradient(rows, rule, parameters), theirs(peer))


@pytest.mark.filterwarnings("ignore")
def test_apo_zero_on_single_completions_has_the_gradient_of_trls(tmp_path):
    given = [
        {"prompt": row["prompt"], "completion": answer(row["completion"]), "label": row["label"]}
        for row in completions(N)
    ]

    def config(**arguments):
        return KTOConfig(loss_type="apo_zero_unpaired", **arguments)

    peer = trainer(KTOTrainer, config, given, tmp_path)
    groups = [Group(row["prompt_ids"], [row["completion_ids"]]) for row in peer.train_dataset]
    measured = {
        "label": [row["label"] for row in peer.train_dataset],
        "ref_logps": [one for (one,) in ref_logps(groups)],
    }
    rows = Rows(list("abcd"), groups, [], columns(N) | measured, {})
    assert_the_same(gradient(rows, "apo_zero_unpaired", {"beta": 0.3}), theirs(peer))


# TRL's trainers without a reference are experimental: their losses are called alone, on log-probs.

CHOSEN_N, REJECTED_N = torch.tensor([3, 9, 20, 7]), torch.tensor([5, 2, 18, 30])
CHOSEN = torch.tensor([-2.0, -9.5, -40.0, -1.5], dtype=torch.float64)
REJECTED = torch.tensor([-6.0, -1.25, -33.0, -50.0], dtype=torch.float64)
BATCH = Pairs(
    CHOSEN,
    REJECTED,
    weight=torch.ones(N, dtype=torch.float64),
    chosen_n_tokens=CHOSEN_N,
    rejected_n_tokens=REJECTED_N,
)


def their_weights(loss, *, average: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """−∂loss/∂log π(y₊) and ∂loss/∂log π(y₋) of a loss over log-probs, summed or a token."""
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    inputs = (chosen / CHOSEN_N, rejected / REJECTED_N) if average else (chosen, rejected)
    first, second = torch.autograd.grad(loss(*inputs).sum(), [chosen, rejected])
    return -first, second


def cpo_loss(loss_type: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOTrainer
    settings = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        label_smoothing=0.0,
        loss_type=loss_type,
        simpo_gamma=1.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    return lambda chosen, rejected: CPOTrainer.cpo_loss(settings, chosen, rejected)[0]


def test_simpo_has_the_weights_of_trls_loss():
    chosen, rejected = their_weights(cpo_loss("simpo"), average=True)
    ours = rules.rule("simpo", beta=2.0, gamma=1.0)(BATCH)
    torch.testing.assert_close(ours.chosen, chosen, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(ours.rejected, rejected, rtol=1e-9, atol=1e-15)


def test_cpo_without_imitation_has_the_weights_of_trls_loss():
    chosen, rejected = their_weights(cpo_loss("sigmoid"), average=False)
    ours = rules.rule("cpo", beta=2.0, sft_weight=0.0)(BATCH)
    torch.testing.assert_close(ours.chosen, chosen, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(ours.rejected, rejected, rtol=1e-9, atol=1e-15)


def test_orpo_less_its_imitation_has_the_weights_of_trls_odds_ratio_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOTrainer
    settings = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = their_weights(lambda *logps: -ORPOTrainer.odds_ratio_loss(settings, *logps)[0], average=True)
    ours = rules.rule("orpo", ratio_weight=0.25)(BATCH)
    torch.testing.assert_close(ours.chosen - 1 / CHOSEN_N.double(), chosen, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.rejected, rejected, rtol=1e-5, atol=1e-7)
