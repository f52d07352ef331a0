"""Two and four processes take the step that one would have taken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_data.order import share
from rlhf_data.scoring import models
from rlhf_data.scoring.packs import Group
from rlhf_data.training import loop, train
from rlhf_data.training.ranks import ALONE, Ranks, sum_gradients
from rlhf_data.training.sharding import shard, whole
from rlhf_data.training.step import Policy, accumulate, divide
from tests import tiny_model
from tests.training.snapshots import MAX_LENGTH, completions, paired_snapshot, pairs, unpaired_snapshot
from tests.training.test_every_rule import add_token_values, rows_of
from tests.training.together import together

pytestmark = pytest.mark.usefixtures("one_thread")

# A row rule; one that looks at its batch and at mismatched partners; one that remembers; one known beforehand; one with
# sums over the vocabulary; one over tokens; one over groups.
RULES = ("dpo", "kto", "bco", "sft", "wpo", "ppo_token", "grpo")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, reference):
    rated = [row | {"reward": float(i), "prompt_id": f"prompt-{i // 2}"} for i, row in enumerate(completions(6))]
    made = {
        "paired": paired_snapshot(tmp_path_factory.mktemp("paired"), pairs(6), reference),
        "unpaired": unpaired_snapshot(tmp_path_factory.mktemp("unpaired"), rated, reference),
    }
    tokenizer = models.load_tokenizer(reference, cache=tmp_path_factory.mktemp("cache"))
    add_token_values(made["unpaired"], rows_of("kto", made, tokenizer))
    return made


def test_a_step_of_fewer_rows_than_ranks_leaves_some_without_work():
    group = Group([3, 4], [[5, 6]])
    for sharded, forwards in ((False, []), (True, [[]])):
        work = divide(Policy(tiny_model.model(0), "packed", 64, ranks=Ranks(1, 2), sharded=sharded), [group])
        assert work.shares == [[0], []]
        assert work.forwards == forwards  # an idle one, where all must run together


def gradients(snapshots: dict[str, Path], reference: dict, cache: Path, sharded: bool, budget: int) -> dict:
    """Each rule's gradient of one step over all rows, by a policy that is not the reference, and its weights."""
    known = distributed.is_initialized()
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size()) if known else ALONE
    tokenizer = models.load_tokenizer(reference, cache=cache)
    found = {}
    for rule in RULES:
        rows = rows_of(rule, snapshots, tokenizer)
        model = tiny_model.model(1)
        if sharded:
            shard(model, torch.float32)
        policy = Policy(model, "packed", budget, ranks=ranks, sharded=sharded)
        done = accumulate(policy, rows, range(len(rows)), rule, {})
        if not sharded:
            sum_gradients(model.parameters(), ranks)
        flat = torch.cat([whole(p.grad).flatten() for p in model.parameters() if p.grad is not None])
        weights = torch.cat(list(done.weights)) if isinstance(done.weights, tuple) else done.weights
        found[rule] = {"gradient": flat, "weights": weights, "memory": done.memory, "tokens": done.tokens}
    return found


@pytest.mark.parametrize(
    ("world", "sharded", "budget"), [(2, False, 4096), (4, False, 40), (2, True, 40), (4, True, 4096)]
)
def test_any_number_of_ranks_has_the_gradient_of_one(world, sharded, budget, snapshots, reference, tmp_path):
    alone = gradients(snapshots, reference, tmp_path / "cache", False, 4096)
    for found in together(world, tmp_path / "ranks", gradients, snapshots, reference, tmp_path, sharded, budget):
        for rule, mine in found.items():
            one = alone[rule]
            assert (mine["gradient"] - one["gradient"]).norm() <= 1e-6 * one["gradient"].norm(), rule
            torch.testing.assert_close(mine["weights"], one["weights"], rtol=1e-5, atol=1e-7, msg=rule)
            assert mine["tokens"] == one["tokens"] and mine["memory"] == pytest.approx(one["memory"], rel=1e-6)


def run(snapshot: Path, folder: Path, cache: Path, reference: dict, options: dict) -> dict | str:
    try:
        return train(
            snapshot,
            folder,
            model=reference,
            max_length=MAX_LENGTH,
            learning_rate=1e-3,
            batch_size=3,
            cache=cache,
            **({"progress": False} | options),
        )
    except ValueError as error:
        return str(error)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_train_the_policy_of_one_and_leave_its_run_folder(sharded, snapshots, reference, tmp_path):
    options = {"rule": "bco", "epochs": 2, "shard": sharded}
    run(snapshots["unpaired"], tmp_path / "one", tmp_path / "cache", reference, options)
    both = together(
        2, tmp_path / "ranks", run, snapshots["unpaired"], tmp_path / "two", tmp_path / "cache", reference, options
    )
    assert both[0] == both[1] and (both[0]["ranks"], both[0]["sharded"]) == (2, sharded)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    configs = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]
    assert [line["step"] for line in lines(tmp_path / "two")] == [1, 2, 3, 4]
    for mine, one in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert mine["memory"] == pytest.approx(one["memory"], rel=1e-4, abs=1e-6)
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-4, msg=name)


def stopped(snapshot: Path, folder: Path, cache: Path, reference: dict, options: dict) -> None:
    """A run that is cut off when its steps are done, before its model is written."""
    from rlhf_data.training import run as module

    def cut(*arguments):
        raise ValueError("cut off here")

    module._finish = cut
    assert run(snapshot, folder, cache, reference, options) == "cut off here"


@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_of_two_ranks_goes_on_with_one_and_with_two(sharded, snapshots, reference, tmp_path):
    options = {"rule": "dpo", "epochs": 2, "shard": sharded, "checkpoint_every": 2}
    where = (snapshots["paired"], tmp_path / "two", tmp_path / "cache", reference, options)
    together(2, tmp_path / "first", stopped, *where)
    whole_run = lines(tmp_path / "two")
    together(2, tmp_path / "second", stopped, *where)  # from step 2, the same bits
    for again, before in zip(lines(tmp_path / "two"), whole_run, strict=True):
        assert {**again, "tokens_per_second": 0} == {**before, "tokens_per_second": 0}
    finished = run(*where)
    assert isinstance(finished, dict) and finished["steps"] == 4
    for again, before in zip(lines(tmp_path / "two"), whole_run, strict=True):
        assert again["loss"] == pytest.approx(before["loss"], rel=1e-4)


def test_what_one_rank_refuses_all_refuse(snapshots, reference, tmp_path):
    options = {"rule": "dpo", "max_prompt_length": 7}
    said = together(
        2, tmp_path / "ranks", run, snapshots["paired"], tmp_path / "run", tmp_path / "cache", reference, options
    )
    assert said[0] == said[1] and "max_prompt_length: scored with" in said[0]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_every_row_has_one_rank_and_no_rank_has_much_more_than_another(sizes, world):
    shares = [share(sizes, rank, world) for rank in range(world)]
    assert sorted(i for rows in shares for i in rows) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in rows) for rows in shares]
    assert max(loads) - min(loads) <= max(sizes)


TOGETHER = {
    "adapter": {"lora": {"r": 4}},
    "moving": {"reference": {"ema": 0.5}},
    "both": {"lora": {"r": 4}, "reference": {"tau": 2}},
    "head": {"rule": "rm"},  # of one row, which only one rank can hold
}


def several(snapshot: Path, folder: Path, cache: Path, reference: dict, options: dict[str, dict]) -> None:
    for name, said in options.items():
        assert isinstance(run(snapshot, folder / name, cache, reference, said), dict)


def test_shards_go_with_adapters_with_references_that_move_and_with_a_reward_head(snapshots, reference, tmp_path):
    options = {name: {"rule": "dpo", "epochs": 3, "shard": True, **said} for name, said in TOGETHER.items()}
    where = (tmp_path / "cache", reference, options)
    several(snapshots["paired"], tmp_path / "one", *where)
    together(2, tmp_path / "ranks", several, snapshots["paired"], tmp_path / "two", *where)
    for name in options:
        two, one = tmp_path / "two" / name, tmp_path / "one" / name
        manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (two, one)]
        assert [said["sharded"] for said in manifests] == [True, False]
        assert manifests[0]["trained_parameters"] == manifests[1]["trained_parameters"]
        assert sorted(path.name for path in two.rglob("*")) == sorted(path.name for path in one.rglob("*"))
        for mine, alone in zip(lines(two), lines(one), strict=True):
            assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-6), name
            assert mine["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5), name
            assert mine.get("reference_moved") == alone.get("reference_moved")
        for path in one.glob("*/*.safetensors"):
            weights = load_file(path)
            for key, tensor in load_file(two / path.relative_to(one)).items():
                torch.testing.assert_close(tensor, weights[key], rtol=0, atol=1e-6, msg=f"{name} {key}")


def test_experts_are_divided_and_only_one_rank_reads_the_weights(snapshots, tmp_path):
    torch.manual_seed(0)
    said = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    said |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2}
    start = {"path": str(tmp_path / "start")}
    config = AutoConfig.for_model("qwen3_moe", **said | {"moe_intermediate_size": 32, "eos_token_id": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(start["path"])
    tiny_model.tokenizer().save_pretrained(start["path"])
    options = {"rule": "simpo", "epochs": 2, "shard": True}
    assert isinstance(run(snapshots["paired"], tmp_path / "one", tmp_path / "cache", start, options), dict)
    where = (tmp_path / "two", tmp_path / "cache", start, options)
    loads = together(2, tmp_path / "ranks", counted, snapshots["paired"], *where)
    assert loads == [1, 0]
    for mine, alone in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6, msg=name)


def counted(*where) -> int:
    """A run; how often this rank loaded a model for it."""
    real, loads = models.load, []
    models.load = lambda *said, **more: loads.append(said) or real(*said, **more)
    assert isinstance(run(*where), dict)
    models.load = real
    return len(loads)


def killed_and_resumed(snapshot: Path, folder: Path, cache: Path, reference: dict, options: dict[str, dict]) -> None:
    """Each run twice: through, and killed at its fourth step and resumed with other random numbers about."""
    for name, said in options.items():
        assert isinstance(run(snapshot, folder / name / "through", cache, reference, said), dict)
        real, done = loop._step, []

        def dies(*arguments, real=real, done=done):
            done.append(1)
            if len(done) == 4:
                raise KeyboardInterrupt
            return real(*arguments)

        loop._step = dies
        with pytest.raises(KeyboardInterrupt):
            run(snapshot, folder / name / "killed", cache, reference, said)
        loop._step = real
        distributed.barrier()
        if distributed.get_rank() == 0:
            shutil.copytree(folder / name / "killed", folder / name / "elsewhere")
        torch.manual_seed(99 + distributed.get_rank())
        assert isinstance(run(snapshot, folder / name / "killed", cache, reference, said), dict)


def test_dropout_of_several_ranks_survives_a_kill_to_the_last_bit(snapshots, reference, tmp_path, capsys):
    said = {"rule": "dpo", "epochs": 3, "checkpoint_every": 3, "lora": {"r": 4, "dropout": 0.1}}
    options = {"whole": said, "shared": said | {"shard": True, "reference": {"tau": 2}}}
    cache = tmp_path / "cache"
    together(2, tmp_path / "ranks", killed_and_resumed, snapshots["paired"], tmp_path, cache, reference, options)
    for name in options:
        through, killed = tmp_path / name / "through", tmp_path / name / "killed"
        for path in through.glob("*/*.safetensors"):
            assert path.read_bytes() == (killed / path.relative_to(through)).read_bytes()
        for mine, before in zip(lines(killed), lines(through), strict=True):
            assert {**mine, "tokens_per_second": 0} == {**before, "tokens_per_second": 0}
        files = sorted((tmp_path / name / "elsewhere" / "checkpoints" / "step-3").iterdir())
        states = [torch.load(path, weights_only=True) for path in files]
        held = [sum(tensor.numel() for tensor in state["model"].values()) for state in states]
        trained = json.loads((through / "manifest.json").read_text())["trained_parameters"]
        assert held == ([trained / 2] * 2 if name == "shared" else [trained])  # r and widths are even
        alone = run(
            snapshots["paired"], tmp_path / name / "elsewhere", cache, reference, options[name] | {"progress": True}
        )
        assert isinstance(alone, dict) and alone["steps"] == len(lines(through))
        assert "another number of ranks (2 before, 1 now)" in capsys.readouterr().err


def test_a_checkpoint_that_lacks_a_rank_is_refused(snapshots, reference, tmp_path):
    options = {"rule": "dpo", "epochs": 2, "shard": True, "checkpoint_every": 2}
    where = (snapshots["paired"], tmp_path / "two", tmp_path / "cache", reference, options)
    together(2, tmp_path / "first", stopped, *where)
    (tmp_path / "two" / "checkpoints" / "step-2" / "state-1.pt").unlink()
    said = run(*where)
    assert isinstance(said, str) and "step-2 cannot be read: delete this folder" in said
