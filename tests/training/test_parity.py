"""The gradient of a step is that of TRL's trainers, on the same tokens with another model as reference."""

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.training.batches import Rows
from rlhf_data.training.step import Policy, accumulate
from tests import tiny_model
from tests.training.snapshots import completions, pairs

# TRL scores what ChatML writes after the end token, so the two are compared on a template without that newline.
TEMPLATE = tiny_model.CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
ARGUMENTS = {
    "beta": 0.3,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": [],
    "gradient_checkpointing": False,
    "bf16": False,
}


def trainer(kind, config, rows, folder):
    return kind(
        model=tiny_model.model(0),
        ref_model=tiny_model.model(1),
        args=config(output_dir=str(folder), **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_model.tokenizer(TEMPLATE),
    )


def answer(text):
    return [{"role": "assistant", "content": text}]


def theirs(trainer) -> dict[str, torch.Tensor]:
    trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).backward()
    return {name: p.grad for name, p in trainer.model.named_parameters()}


def ours(rows: Rows, rule: str) -> dict[str, torch.Tensor]:
    model = tiny_model.model(0)
    accumulate(Policy(model, "packed", 2048), rows, range(len(rows)), rule, {"beta": 0.3})
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_parallel(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(mine) == set(other)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def ref_logps(groups: list[Group]) -> list[list[float]]:
    with torch.no_grad():
        return [[float(one.sum()) for one in group] for group in token_logps(tiny_model.model(1), groups, "packed")]


def columns(n: int) -> dict:
    return {"weight": [1.0] * n, "source": ["hh"] * n, "category": [None] * n}


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own
def test_a_dpo_step_has_the_gradient_of_trls(tmp_path):
    rows = [
        {"prompt": row["prompt"], "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])}
        for row in pairs(4)
    ]
    peer = trainer(DPOTrainer, DPOConfig, rows, tmp_path)
    groups = [Group(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in peer.train_dataset]
    refs = ref_logps(groups)
    given = columns(4) | {
        "preference": [1.0] * 4,
        "ref_chosen_logps": [chosen for chosen, _ in refs],
        "ref_rejected_logps": [rejected for _, rejected in refs],
    }
    assert_parallel(ours(Rows(list("abcd"), groups, [], given, {}), "dpo"), theirs(peer))


@pytest.mark.filterwarnings("ignore")
def test_a_kto_step_has_the_gradient_of_trls(tmp_path):
    rows = [
        {"prompt": row["prompt"], "completion": answer(row["completion"]), "label": row["label"]}
        for row in completions(4)
    ]
    peer = trainer(KTOTrainer, KTOConfig, rows, tmp_path)
    groups = [Group(row["prompt_ids"], [row["completion_ids"]]) for row in peer.train_dataset]
    mismatched = [Group(row["prompt_ids"], [row["KL_completion_ids"]]) for row in peer.train_dataset]
    given = columns(4) | {
        "label": [row["label"] for row in peer.train_dataset],
        "ref_logps": [one for (one,) in ref_logps(groups)],
        "ref_mismatched_logps": [one for (one,) in ref_logps(mismatched)],
    }
    assert_parallel(ours(Rows(list("abcd"), groups, mismatched, given, {}), "kto"), theirs(peer))
