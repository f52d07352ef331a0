"""Rule by rule, the gradient of a step is that of TRL's loss of the same kind, on the same tokens."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_data import rules
from rlhf_data.rules import Pairs
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.training.batches import Rows
from rlhf_data.training.loss import weighted_loss
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import completions, pairs
from tests.training.test_parity import ARGUMENTS, TEMPLATE, answer, columns, ref_logps, theirs, trainer

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


def gradient(rows: Rows, rule: rules.Rule, parameters: dict[str, Any]) -> dict[str, torch.Tensor]:
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
    return peer, rows_of(groups)


def rows_of(groups: list[Group]) -> Rows:
    """Pairs with another model's log-probs as references, summed and a token."""
    with torch.no_grad():
        tokens = token_logps(tiny_model.model(1), groups, "packed")
    measured: dict[str, list] = {"preference": [1.0] * N}
    for column, side in enumerate(("chosen", "rejected")):
        measured[f"ref_{side}_logps"] = [float(row[column].sum()) for row in tokens]
        measured[f"ref_{side}_token_logps"] = [row[column].tolist() for row in tokens]
    return Rows(list("abcd"), groups, [], columns(N) | measured, {})


SUM = {
    "sum": [
        {"rule": "dpo", "beta": 0.3},
        {"rule": "hinge", "beta": 0.3, "coefficient": 0.5},
        {"rule": "sft", "reduction": "token_mean", "coefficient": 0.25},
    ]
}


ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.4}


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
        case("fdpo_alpha", ["sigmoid"], {"beta": 0.3, "alpha": 0.4}, **ALPHA),
        case("ld_dpo", ["sigmoid"], {"beta": 0.3, "alpha": 0.25}, ld_alpha=0.25),
        case("sum", ["sigmoid", "hinge", "sft"], {}, loss_weights=[1.0, 0.5, 0.25], of=SUM),
    ],
)  # fmt: skip
def test_a_paired_rule_has_the_gradient_of_trls_loss(rule, loss_types, parameters, settings, paired, monkeypatch):
    peer, rows = paired
    settings = dict(settings)
    rule = settings.pop("of", rule)
    defaults = {"loss_weights": [1.0], "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "ld_alpha": None}
    for name, value in {**defaults, **settings, "loss_types": loss_types}.items():
        monkeypatch.setattr(peer, name, value, raising=False)
    peer.model.zero_grad(set_to_none=True)
    assert_the_same(gradient(rows, rule, parameters), theirs(peer))


@pytest.mark.filterwarnings("ignore")
def test_wpo_has_the_gradient_of_trls_weighting(paired, tmp_path):
    given = [
        {"prompt": row["prompt"], "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])}
        for row in pairs(N)
    ]

    def config(**arguments):
        return DPOConfig(use_weighting=True, **arguments)

    peer = trainer(DPOTrainer, config, given, tmp_path)
    assert_the_same(gradient(paired[1], "wpo", {"beta": 0.3, "clamp": "none"}), theirs(peer))


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


# TRL's trainers without a reference are experimental: their losses run on our token ids, without their tokenisation.


def padded(paired, side: int) -> dict[str, torch.Tensor]:
    """The ids, mask and labels of one side, as a TRL collator would pad them."""
    rows = [(list(group.prompt), list(group.completions[side])) for group in paired[1].groups]
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    made = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, completion in rows:
        room = width - len(prompt) - len(completion)
        made["input_ids"].append(prompt + completion + [0] * room)
        made["attention_mask"].append([1] * (width - room) + [0] * room)
        made["labels"].append([-100] * len(prompt) + completion + [-100] * room)
    return {name: torch.tensor(values) for name, values in made.items()}


def their_batch(paired) -> dict[str, torch.Tensor]:
    sides = (("chosen", 0), ("rejected", 1))
    return {f"{side}_{key}": value for side, column in sides for key, value in padded(paired, column).items()}


def without_its_init(name: str, **settings: Any):
    """An experimental trainer with what its loss reads, and no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "cpo":
            from trl.experimental.cpo import CPOTrainer as Trainer
        else:
            from trl.experimental.orpo import ORPOTrainer as Trainer
    peer = Trainer.__new__(Trainer)
    vars(peer).update(
        is_encoder_decoder=False,
        pad_token_id=0,
        padding_value=0,
        label_pad_token_id=-100,
        aux_loss_enabled=False,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        label_smoothing=0.0,
        alpha=0.0,
        simpo_gamma=0.7,
        **settings,
    )
    return peer


def parameter_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("loss_type", "rule", "parameters"),
    [
        ("sigmoid", "cpo", {"beta": 0.3, "sft_weight": 0.5, "reduction": "token_mean"}),
        ("hinge", "cpo_hinge", {"beta": 0.3, "sft_weight": 0.5, "reduction": "token_mean"}),
        ("ipo", "cpo_ipo", {"tau": 0.3, "sft_weight": 0.5, "reduction": "token_mean"}),
        ("simpo", {"sum": [{"rule": "simpo", "beta": 0.3, "gamma": 0.7}, {"rule": "sft", "coefficient": 0.5}]}, {}),
    ],
    ids=["sigmoid", "hinge", "ipo", "simpo"],
)
def test_a_rule_without_reference_has_the_gradient_of_trls_cpo_loss(loss_type, rule, parameters, paired):
    peer = without_its_init("cpo", loss_type=loss_type, beta=0.3, cpo_alpha=0.5)
    model = tiny_model.model(0)
    peer.get_batch_loss_metrics(model, their_batch(paired))[0].backward()
    assert_the_same(gradient(paired[1], rule, parameters), parameter_gradients(model))


@pytest.mark.filterwarnings("ignore")
def test_orpo_less_its_imitation_has_the_gradient_of_trls_odds_ratio_loss(paired):
    # TRL imitates the prompt along with the answer, token by token; the paper's term is on the answer alone.
    peer = without_its_init("orpo", beta=0.25)
    model = tiny_model.model(0)
    chosen, rejected = peer.concatenated_forward(model, their_batch(paired))[:2]
    (-peer.odds_ratio_loss(chosen, rejected)[0].mean()).backward()
    alone = {
        "sum": [
            {"rule": "orpo", "ratio_weight": 0.25},
            {"rule": "sft", "reduction": "row_mean", "coefficient": -1.0},
        ]
    }
    assert_the_same(gradient(paired[1], alone, {}), parameter_gradients(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("loss_type", "rule"), [("nll", "sft"), ("dft", "dft")])
def test_imitation_has_the_gradient_of_trls_loss(loss_type, rule, tmp_path):
    given = [{"prompt": row["prompt"], "completion": answer(row["chosen"])} for row in pairs(N)]
    arguments = {key: value for key, value in ARGUMENTS.items() if key != "beta"}
    peer = SFTTrainer(
        model=tiny_model.model(0),
        args=SFTConfig(output_dir=str(tmp_path), loss_type=loss_type, max_length=None, **arguments),
        train_dataset=Dataset.from_list(given),
        processing_class=tiny_model.tokenizer(TEMPLATE),
    )
    groups = []
    for row in peer.train_dataset:
        start = sum(label == -100 for label in row["labels"])
        groups.append(Group(row["input_ids"][:start], [row["input_ids"][start:]]))
    assert_the_same(gradient(Rows(list("abcd"), groups, [], columns(N), {}), rule, {}), theirs(peer))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_a_reward_model_has_the_gradient_of_trls(centre, paired):
    from transformers import LlamaForSequenceClassification

    config = tiny_model.model(0).config
    config.num_labels, config.pad_token_id = 1, 0

    def head() -> LlamaForSequenceClassification:
        torch.manual_seed(5)
        return LlamaForSequenceClassification(config).eval()

    sides = [padded(paired, column) for column in (0, 1)]
    width = max(side["input_ids"].shape[1] for side in sides)
    inputs = {
        key: torch.cat([torch.nn.functional.pad(side[key], (0, width - side[key].shape[1])) for side in sides])
        for key in ("input_ids", "attention_mask")
    }
    peer, model = RewardTrainer.__new__(RewardTrainer), head()
    vars(peer).update(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centre or None),
        accelerator=SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    peer.compute_loss(model, dict(inputs)).backward()
    mine = head()
    scores = mine(**inputs, use_cache=False).logits.squeeze(-1).double()
    zeros = torch.zeros(N, dtype=torch.float64)
    batch = Pairs(zeros, zeros, zeros + 1, preference=zeros + 1, chosen_score=scores[:N], rejected_score=scores[N:])
    weighted_loss(batch, rules.rule("rm", centre=centre)(batch), normaliser=float(N)).backward()
    assert_the_same(parameter_gradients(mine), parameter_gradients(model))
