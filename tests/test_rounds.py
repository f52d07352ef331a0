"""Online rounds: a policy learns from what it writes itself, round by round, and a kill costs nothing."""

import functools
import importlib
import json
import os
import shutil
import time
from pathlib import Path

import polars as pl
import pytest
from torch import distributed

from rlhf_data import engine
from rlhf_data.cli import run_command
from rlhf_data.plan import Workspace
from rlhf_data.rounds import round_spec
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec import SpecError, check, read_all
from rlhf_data.spec.sections import Score
from rlhf_data.training import trackers
from tests import tiny_model
from tests.project import SPEC, ratings
from tests.training.together import together

pytestmark = pytest.mark.usefixtures("one_thread")

ONLINE = (
    SPEC.replace("{to: paired, pairing: all}", "{to: unpaired}").replace("test: 0.2", "test: 0.4")
    + """train:
  rule: raft
  model: model
  batch_size: 16
  learning_rate: 1e-2
  max_length: 64
  rounds:
    {n: 2, prompts: 12, samples: 6, max_new_tokens: 6, unfinished: keep,
     rate: {by: verifier, verifier: "tests.test_rounds:short"}}
evaluate: {verifier: "tests.test_rounds:short", samples: 6, temperature: 1.0, max_new_tokens: 6}
"""
)


def short(messages, completion) -> float:
    """The fewer characters the better, and nothing is best."""
    return -float(len(completion))


@pytest.fixture
def online(project):
    project.raw(ratings(prompts=30, answers=1))
    tiny_model.save(project.folder / "model")
    project.spec(ONLINE)
    return project


def spec_of(project):
    ((spec, _),) = read_all(project.folder / "demo.yaml").values()
    return spec


def test_rounds_raise_the_reward_that_they_are_rated_by(online, capsys):
    assert run_command(["run", "demo.yaml", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    run = Path(result["run"])
    manifest = json.loads((run / "manifest.json").read_text())
    first, second = manifest["rounds"]
    assert second["reward"] > first["reward"]
    reward = next(m for m in result["evaluation"]["measures"] if m["name"] == "verifier reward")["lines"][0]
    assert reward["difference"]["low"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, manifest["steps"] + 1))
    assert [line["round"] for line in lines] == [1] * first["steps"] + [2] * second["steps"]
    batches = pl.read_parquet(run / "batches" / "*.parquet").group_by("step").len().sort("step")
    assert batches.rows() == [(line["step"], line["rows"]) for line in lines]
    assert (run / "report.html").read_text().count("<td") and (run / "model" / "config.json").is_file()


def test_a_tracker_hears_a_round_s_steps_before_the_next_round_is_built(online, monkeypatch):
    heard, before_round, build = [], [], engine.build
    log = lambda step, values: heard.append((step, values["round"]))  # noqa: E731
    opens = ("json", "none", lambda *_: trackers.Tracker(log, lambda: None))
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", opens)
    monkeypatch.setattr(trackers, "following", functools.partial(trackers.following, period=0.01))

    def building(*given, **named):
        time.sleep(0.2)
        before_round.append(list(heard))
        return build(*given, **named)

    online.spec(ONLINE.replace("  rounds:", "  track: [tensorboard]\n  rounds:"))
    assert run_command(["build", "demo.yaml"]) == 0
    monkeypatch.setattr(engine, "build", building)
    assert run_command(["train", "demo.yaml"]) == 0
    (path,) = Path(".rlhf/runs/demo").glob("*/manifest.json")
    first, second = (one["steps"] for one in json.loads(path.read_text())["rounds"])
    steps = list(enumerate([1] * first + [2] * second, start=1))
    assert before_round == [[], steps[:first]] and heard == steps


def test_each_round_is_a_snapshot_of_other_prompts_of_the_train_split(online):
    assert run_command(["build", "demo.yaml"]) == 0 and run_command(["train", "demo.yaml"]) == 0
    train = set(online.snapshot.scan("train").collect()["prompt_id"])
    rounds = [Snapshot(online.folder / "snapshots" / f"demo-round-{k}") for k in (1, 2)]
    drawn = [set(one.scan("train").collect()["prompt_id"]) for one in rounds]
    assert all(prompts <= train and len(prompts) <= 12 for prompts in drawn)
    assert len(drawn[0] & drawn[1]) <= max(0, 24 - len(train))
    rows = rounds[0].scan("train").collect()
    assert rows["weight"].to_list() == rows["votes"].to_list()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("place", ["sampled", "trained"])
def test_a_killed_run_of_rounds_ends_with_the_bits_of_one_that_was_not(online, monkeypatch, place):
    assert run_command(["build", "demo.yaml"]) == 0
    spec = spec_of(online)
    engine.build(spec, Workspace(Path("whole")))
    whole = engine.train(spec, Workspace(Path("whole")), progress=False)
    calls = []

    def killing(function):
        def once(*arguments, **options):
            calls.append(1)
            if len(calls) == 2:  # in the second round
                raise Killed
            return function(*arguments, **options)

        return once

    where, name = {"sampled": ("generate", "write"), "trained": ("run", "_finish")}[place]
    module = importlib.import_module(f"rlhf_data.training.{where}")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killing(getattr(module, name)))
        with pytest.raises(Killed):
            engine.train(spec, Workspace(Path(".rlhf")), progress=False)
    written = {path: path.stat().st_mtime_ns for path in Path(".rlhf/samples").glob("*/samples.parquet")}
    resumed = engine.train(spec, Workspace(Path(".rlhf")), progress=False)
    assert len(written) == (1 if place == "sampled" else 2)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())  # not written again
    for name in ("model.safetensors", "config.json"):
        assert (resumed / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_the_policy_that_writes_is_the_reference_or_the_old_policy_or_neither(online):
    spec, policy = spec_of(online), {"path": "written-by"}

    def scored(score: Score, reference: str = "behaviour") -> Score:
        rounds = spec.train.rounds.model_copy(update={"reference": reference})
        train = spec.train.model_copy(update={"rounds": rounds})
        made = round_spec(spec.model_copy(update={"train": train, "score": score}), 2, policy, "demo@1")
        assert made.score is not None and made.train.model == policy and made.name == "demo-round-2"
        return made.score

    plain = Score(model={"path": "start"})
    assert scored(plain).model == policy and scored(plain, "fixed").model == {"path": "start"}
    both = scored(plain.model_copy(update={"references": {"old": Score(model={"path": "start"})}}))
    assert both.model == {"path": "start"} and both.references["old"].model == policy


def test_another_verifier_or_another_number_of_rounds_is_another_run(online):
    assert run_command(["build", "demo.yaml"]) == 0
    space = Workspace(Path(".rlhf"))

    def name(text: str) -> str:
        online.spec(text)
        return engine.run_id(spec_of(online), online.snapshot, space)

    changes = (("n: 2,", "n: 3,"), (":short", ":wrong"), ("samples: 6,", "samples: 5,"))
    texts = [ONLINE, *(ONLINE.replace(old, new) for old, new in changes)]
    assert len({name(text) for text in texts}) == 4 and name(ONLINE) == name(texts[0])


def wrong(project, text: str) -> str:
    file = project.spec(text)
    with pytest.raises(SpecError) as error:
        check(read_all(file), Workspace(project.folder / ".rlhf"))
    return str(error.value)


def test_rounds_that_cannot_work_are_refused_before_anything_runs(online):
    told = wrong(online, ONLINE.replace('by: verifier, verifier: "tests.test_rounds:short"', "by: votes"))
    assert "train.rounds.rate" in told or "train.rounds" in told
    assert "nobody has judged what is written now" in told
    told = wrong(online, ONLINE.replace('tests.test_rounds:short"}}', 'no_such_module:short"}}'))
    assert "no module no_such_module" in told
    scored = ONLINE.replace("  max_length: 64\n", "").replace("publish:", "score: {model: model}\npublish:")
    assert "needs labels, and what a policy writes has none" in wrong(online, scored.replace("rule: raft", "rule: kto"))


def trained(root: Path) -> str:
    os.chdir(root)
    os.environ |= {"RANK": str(distributed.get_rank()), "WORLD_SIZE": "2"}
    ((spec, _),) = read_all(root / "demo.yaml").values()
    return str(engine.train(spec, Workspace(Path("both")), progress=False))


def test_rounds_of_two_ranks_write_the_answers_of_one_and_train_its_policy(online):
    online.spec(ONLINE.replace("  model: model\n", "  model: model\n  lora: {r: 4}\n"))
    spec = spec_of(online)
    engine.build(spec, Workspace(Path("alone")))
    shutil.copytree("alone", "both")
    alone = engine.train(spec, Workspace(Path("alone")), progress=False)
    run, same = together(2, online.folder / "ranks", trained, online.folder)
    assert run == same
    one, two = (json.loads((Path(folder) / "manifest.json").read_text()) for folder in (alone, run))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    first, second = ([part["rounds"][k] for part in (one, two)] for k in (0, 1))
    assert first[0]["reward"] == first[1]["reward"] and first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-5)
    assert [part["answers"] for part in second] == [72, 72]
    assert (Path(run) / "adapter" / "adapter_model.safetensors").is_file()
    assert two["adapter_base"] == {"path": str(Path(first[1]["run"]) / "model")}
    assert sorted(p.name for p in Path(run).iterdir()) == sorted(p.name for p in Path(alone).iterdir())
