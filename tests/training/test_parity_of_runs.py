"""Step by step, whole runs of ours and of TRL's trainers are the same: 20 steps of AdamW on the same batches, float32.

Our side is `train` on a scored snapshot, with its own tokens, packs and shared prompts; theirs is `Trainer.train`, rows
in our order, with the other model as the live reference. Of the rules that both have, three run in every test run, all
of them with RLHF_DATA_PARITY=all, as in `make parity`. RLHF_DATA_PARITY_MODEL=FOLDER[:GGUF] adds a short run of a real
model, from the folder's weights.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_data import rules
from rlhf_data.order import epoch_batches
from rlhf_data.scoring import models as loading
from rlhf_data.scoring.encode import encode, prompt_limit
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group
from rlhf_data.training import train
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot
from tests.training.test_parity import TEMPLATE, answer

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = os.environ.get("RLHF_DATA_PARITY") == "all"
STEPS, BATCH = 20, 4
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_length": MAX_LENGTH,
}
LATER = [] if ALL else [pytest.mark.skip(reason="not in every test run: RLHF_DATA_PARITY=all runs it")]


class Trained(NamedTuple):
    """A run: the loss of each step before its update, and the parameters after the last."""

    losses: list[float]
    parameters: dict[str, torch.Tensor]


def case(rule: str, loss_types: list[str], parameters: dict[str, Any], **settings: Any) -> Any:
    marks = [] if rule == "dpo" else LATER
    return pytest.param(settings.pop("of", rule), loss_types, parameters, settings, id=rule, marks=marks)


ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.4}
SUM = {"sum": [{"rule": "dpo", "beta": 0.3}, {"rule": "hinge", "beta": 0.3, "coefficient": 0.5}]}
PAIRED = [
    case("dpo", ["sigmoid"], {"beta": 0.3}),
    case("hinge", ["hinge"], {"beta": 0.3}),
    case("ipo_avg", ["ipo"], {"tau": 0.3}),
    case("robust_dpo", ["robust"], {"beta": 0.3, "label_smoothing": 0.2}, label_smoothing=0.2),
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
    case("wpo", ["sigmoid"], {"beta": 0.3, "clamp": "none"}, use_weighting=True),
    case("fdpo_forward_kl", ["sigmoid"], {"beta": 0.3}, f_divergence_type="forward_kl"),
    case("fdpo_js", ["sigmoid"], {"beta": 0.3}, f_divergence_type="js_divergence"),
    case("fdpo_alpha", ["sigmoid"], {"beta": 0.3, "alpha": 0.4}, **ALPHA),
    case("ld_dpo", ["sigmoid"], {"beta": 0.3, "alpha": 0.25}, ld_alpha=0.25),
    case("sum", ["sigmoid", "hinge"], {}, loss_weights=[1.0, 0.5], of=SUM),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Folders of two tiny models, policy and reference, whose template ends where an answer ends."""
    made = {}
    for seed, name in enumerate(("policy", "reference")):
        folder = tmp_path_factory.mktemp(name)
        tiny_model.model(seed).save_pretrained(folder)
        tiny_model.tokenizer(TEMPLATE).save_pretrained(folder)
        made[name] = {"path": str(folder)}
    return made


def of_all_lengths(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The same rows with answers that differ in length, so that padding and token means have something to do."""
    tails = ["", " Wait.", " The sea is deep.", " 1 2 3 4 5 6 7 8", " Paris, of course."]
    return [
        row | {name: row[name] + tails[(i * (k + 2)) % len(tails)] for k, name in enumerate(names)}
        for i, row in enumerate(rows)
    ]


def in_order(ids: list[str], labels: list[bool] | None = None) -> list[int]:
    """Row numbers of all steps, end to end, as our first epoch takes them; with `labels`, each has both classes."""
    batches = epoch_batches(ids, size=BATCH, seed=0, epoch=0, labels=labels)
    assert {len(batch) for batch in batches} == {BATCH}
    return [i for batch in batches for i in batch.tolist()]


def ours(snapshot: Path, run: Path, model: dict[str, str], **arguments: Any) -> Trained:
    train(
        snapshot,
        run,
        model=model,
        batch_size=BATCH,
        warmup=0.0,
        schedule="linear",
        cache=run.parent / "cache",
        progress=False,
        **{"token_budget": 150, **SETTINGS, **arguments},
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Trained([line["loss"] for line in lines], load_file(run / "model" / "model.safetensors"))


def theirs(kind: Any, config: Any, rows: list[dict[str, Any]], folder: Path, **given: Any) -> Trained:
    """`kind(...).train()` over `rows` in the order they stand in; `given` are its models, the rest is its config's."""
    named = {"model", "ref_model", "processing_class"}
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        lr_scheduler_type="linear",
        warmup_steps=0,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **{**SETTINGS, **{name: value for name, value in given.items() if name not in named}},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = {name: value for name, value in given.items() if name in named}
        peer = kind(args=arguments, train_dataset=Dataset.from_list(rows), **models)
        step, losses = peer.training_step, []

        def recorded(*arguments: Any, **named: Any) -> torch.Tensor:
            losses.append(step(*arguments, **named))
            return losses[-1]

        peer.training_step = recorded
        peer.train()
    return Trained([float(loss) for loss in losses], dict(peer.model.named_parameters()))


def assert_the_same(mine: Trained, other: Trained, start: torch.nn.Module, steps: int = STEPS) -> None:
    """Losses and parameters to 1e-4, and what training has changed of the parameters to a thousandth of it.

    AdamW divides each gradient by its own size, so that an entry which is nothing but rounding moves as far as any
    other: whole runs are as close as their entries are above rounding, not as their gradients are (1e-6).
    """
    assert len(mine.losses) == len(other.losses) == steps
    torch.testing.assert_close(torch.tensor(mine.losses), torch.tensor(other.losses), rtol=1e-4, atol=1e-4)
    before = dict(start.named_parameters())
    assert set(mine.parameters) == set(before)
    moved = apart = 0.0
    for name, parameter in mine.parameters.items():
        torch.testing.assert_close(parameter, other.parameters[name].data, rtol=0, atol=1e-4)
        moved += float((other.parameters[name] - before[name]).square().sum())
        apart += float((other.parameters[name] - parameter).square().sum())
    assert apart**0.5 < 1e-3 * moved**0.5


def add_reference_tokens(snapshot: Path, rows: list[dict[str, Any]]) -> None:
    """The reference's log-prob of each token, which no snapshot has by itself."""
    tokenizer, model = tiny_model.tokenizer(TEMPLATE), tiny_model.model(1)
    lengths = {"max_length": MAX_LENGTH, "max_prompt_length": prompt_limit(MAX_LENGTH, None)}
    path = snapshot / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    for side in ("chosen", "rejected"):
        ids = encode(tokenizer, [r["prompt"] for r in rows], [r[side] for r in rows], template="chat", **lengths)
        groups = [Group(*both) for both in zip(ids.prompt_ids, ([one] for one in ids.completion_ids), strict=True)]
        with torch.no_grad():
            values = [logps.tolist() for (logps,) in token_logps(model, groups, "packed")]
        table = table.append_column(f"ref_{side}_token_logps", pa.array(values))
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory, models):
    """Pairs as a snapshot scored by the reference, and as TRL takes them, in the order of our steps."""
    rows = of_all_lengths(pairs(STEPS * BATCH), "chosen", "rejected")
    snapshot = paired_snapshot(tmp_path_factory.mktemp("pairs"), rows, models["reference"])
    add_reference_tokens(snapshot, rows)
    given = [
        {"prompt": rows[i]["prompt"], "chosen": answer(rows[i]["chosen"]), "rejected": answer(rows[i]["rejected"])}
        for i in in_order([row["pair_id"] for row in rows])
    ]
    return snapshot, given


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own
@pytest.mark.parametrize(("rule", "loss_types", "parameters", "settings"), PAIRED)
def test_a_paired_run_is_that_of_trls_dpo_trainer(
    rule, loss_types, parameters, settings, preferences, models, tmp_path
):
    snapshot, given = preferences
    mine = ours(snapshot, tmp_path / "run", models["policy"], rule=rule, parameters=parameters)
    other = theirs(
        DPOTrainer,
        DPOConfig,
        given,
        tmp_path / "trl",
        model=tiny_model.model(0),
        ref_model=tiny_model.model(1),
        processing_class=tiny_model.tokenizer(TEMPLATE),
        beta=0.3,
        loss_type=loss_types,
        **settings,
    )
    assert_the_same(mine, other, tiny_model.model(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("loss_type", "rule"), [("kto", "kto"), pytest.param("apo_zero_unpaired", "apo_zero_unpaired", marks=LATER)]
)
def test_an_unpaired_run_is_that_of_trls_kto_trainer(loss_type, rule, models, tmp_path):
    rows = of_all_lengths(completions(STEPS * BATCH), "completion")
    labels = [row["label"] for row in rows] if rules.needs_both_classes(rule) else None
    order = in_order([row["completion_id"] for row in rows], labels)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for at, i in enumerate(batch):  # TRL's partners: each batch's completions, turned by one
            rows[i]["mismatched_id"] = rows[batch[at - 1]]["completion_id"]
    snapshot = unpaired_snapshot(tmp_path / "data", rows, models["reference"])
    mine = ours(snapshot, tmp_path / "run", models["policy"], rule=rule, parameters={"beta": 0.3})
    given = [
        {"prompt": rows[i]["prompt"], "completion": answer(rows[i]["completion"]), "label": rows[i]["label"]}
        for i in order
    ]
    other = theirs(
        KTOTrainer,
        KTOConfig,
        given,
        tmp_path / "trl",
        model=tiny_model.model(0),
        ref_model=tiny_model.model(1),
        processing_class=tiny_model.tokenizer(TEMPLATE),
        beta=0.3,
        loss_type=loss_type,
    )
    assert_the_same(mine, other, tiny_model.model(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("loss_type", "rule"), [("nll", "sft"), pytest.param("dft", "dft", marks=LATER)])
def test_a_run_of_imitation_is_that_of_trls_sft_trainer(loss_type, rule, models, tmp_path):
    rows = of_all_lengths(completions(STEPS * BATCH), "completion")
    snapshot = unpaired_snapshot(tmp_path / "data", rows, models["reference"], scored=False)
    mine = ours(snapshot, tmp_path / "run", models["policy"], rule=rule)
    given = [
        {"prompt": rows[i]["prompt"], "completion": answer(rows[i]["completion"])}
        for i in in_order([row["completion_id"] for row in rows])
    ]
    other = theirs(
        SFTTrainer,
        SFTConfig,
        given,
        tmp_path / "trl",
        model=tiny_model.model(0),
        processing_class=tiny_model.tokenizer(TEMPLATE),
        loss_type=loss_type,
    )
    assert_the_same(mine, other, tiny_model.model(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_a_run_of_a_reward_model_is_that_of_trls_reward_trainer(centre, models, tmp_path):
    rows = of_all_lengths(pairs(STEPS * BATCH), "chosen", "rejected")
    snapshot = paired_snapshot(tmp_path / "data", rows, models["reference"], scored=False)
    tokenizer = tiny_model.tokenizer(TEMPLATE)
    tokenizer.pad_token = tokenizer.bos_token  # the head reads the last token that is no padding: not the end token
    start = tmp_path / "start"
    fits = {"max_length": 128}  # TRL leaves out what is longer, and we cut it
    reward_head(tokenizer.pad_token_id).save_pretrained(start)
    tokenizer.save_pretrained(start)
    mine = ours(snapshot, tmp_path / "run", {"path": str(start)}, rule="rm", parameters={"centre": centre}, **fits)
    other = theirs(
        RewardTrainer,
        RewardConfig,
        [
            {"prompt": rows[i]["prompt"], "chosen": answer(rows[i]["chosen"]), "rejected": answer(rows[i]["rejected"])}
            for i in in_order([row["pair_id"] for row in rows])
        ],
        tmp_path / "trl",
        model=reward_head(tokenizer.pad_token_id),
        processing_class=tokenizer,
        center_rewards_coefficient=centre or None,
        disable_dropout=True,
        **fits,
    )
    assert_the_same(mine, other, reward_head(tokenizer.pad_token_id))


def reward_head(pad: int) -> LlamaForSequenceClassification:
    config = tiny_model.model(0).config
    config.num_labels, config.pad_token_id = 1, pad
    torch.manual_seed(5)
    return LlamaForSequenceClassification(config).eval()


REAL = os.environ.get("RLHF_DATA_PARITY_MODEL", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not REAL, reason="a real model takes minutes: RLHF_DATA_PARITY_MODEL=FOLDER[:GGUF] runs it")
def test_a_short_run_of_a_real_model_is_that_of_trls_dpo_trainer(tmp_path):
    folder, _, gguf = REAL.partition(":")
    reference = {"path": folder} | ({"gguf_file": gguf} if gguf else {})
    model, tokenizer = loading.load(reference, dtype="float32", device="cpu", max_length=128, cache=tmp_path / "cache")
    end = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace(f"'{end}' + '\n'", f"'{end}'").replace(
        f"'{end}' + '\\n'", f"'{end}'"
    )
    policy = {"path": str(tmp_path / "model")}
    model.save_pretrained(policy["path"])
    tokenizer.save_pretrained(policy["path"])
    del model
    steps = 3
    rows = of_all_lengths(pairs(steps * BATCH), "chosen", "rejected")
    snapshot = paired_snapshot(tmp_path / "pairs", rows, policy)
    mine = ours(snapshot, tmp_path / "run", policy, rule="dpo", parameters={"beta": 0.3}, learning_rate=1e-5)
    given = [
        {"prompt": rows[i]["prompt"], "chosen": answer(rows[i]["chosen"]), "rejected": answer(rows[i]["rejected"])}
        for i in in_order([row["pair_id"] for row in rows])
    ]
    read = AutoModelForCausalLM.from_pretrained
    other = theirs(
        DPOTrainer,
        DPOConfig,
        given,
        tmp_path / "trl",
        model=read(policy["path"], dtype=torch.float32),
        ref_model=read(policy["path"], dtype=torch.float32),
        processing_class=tokenizer,
        beta=0.3,
        learning_rate=1e-5,
    )
    assert_the_same(mine, other, read(policy["path"], dtype=torch.float32), steps)
