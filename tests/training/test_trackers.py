"""Trackers are told every step once, of a resumed run too, and one that fails costs nothing but itself."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from rlhf_data.training.trackers import TRACKERS, flat, following


class Fake:
    """A service with the calls that trackio, MLflow and Weights & Biases have in common with ours."""

    def __init__(self) -> None:
        self.logged, self.started, self.ended = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1

    def set_experiment(self, name):
        self.experiment = name

    def start_run(self, run_id=None, run_name=None):
        self.started.append({"run_id": run_id, "name": run_name})
        return SimpleNamespace(info=SimpleNamespace(run_id="r-1"))

    def log_params(self, values):
        self.params = values

    log_metrics = log
    end_run = finish


@pytest.fixture(params=["trackio", "mlflow", "wandb"])
def service(request, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, fake


def write(run, steps, mode="w"):
    with (run / "metrics.jsonl").open(mode) as file:
        file.write("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps))


def test_every_step_is_handed_on_once_also_after_a_kill(service, tmp_path):
    name, fake = service
    with following(tmp_path, [name], "demo", {"rule": "dpo", "model": {"path": "m"}}, period=0.01):
        write(tmp_path, [1, 2, 3])
    # It was killed after step 3 and goes on from a checkpoint at step 2.
    write(tmp_path, [1, 2])
    with following(tmp_path, [name], "demo", {"rule": "dpo"}, period=0.01):
        write(tmp_path, [3, 4], "a")
    assert fake.logged == [(step, {"loss": 1 / step}) for step in (1, 2, 3, 4)]
    assert fake.ended == 2 and len(fake.started) == 2


def test_the_steps_of_rounds_are_handed_on_as_they_happen_and_count_on(service, tmp_path):
    name, fake = service
    first, second = tmp_path / "first", tmp_path / "second"
    with following(tmp_path, [name], "demo", {"rule": "grpo"}, period=0.01):
        for run, steps in ((first, [1, 2, 3]), (second, [1, 2])):
            run.mkdir()
            with following(run, [], "demo-round", {}):
                write(run, steps)
                wait_for(
                    lambda steps=steps: len(fake.logged) >= len(steps) and fake.logged[-1][1]["loss"] == 1 / steps[-1]
                )
        assert [step for step, _ in fake.logged] == [1, 2, 3, 4, 5]  # before the whole has ended
        # what finish makes of them, at the end, is no news
        write(tmp_path, [1, 2, 3, 4, 5])
    assert [step for step, _ in fake.logged] == [1, 2, 3, 4, 5]
    assert [values["round"] for _, values in fake.logged] == [1, 1, 1, 2, 2]
    assert len(fake.started) == 1


def wait_for(true, seconds=5.0):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    assert true()


def test_mlflow_goes_on_in_the_run_that_it_started(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for _ in range(2):
        with following(tmp_path, ["mlflow"], "demo", {"rule": "dpo"}):
            write(tmp_path, [1])
    assert [one["run_id"] for one in fake.started] == [None, "r-1"]


def test_steps_are_handed_on_while_the_run_goes_on(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with following(tmp_path, ["wandb"], "demo", {}, period=0.01):
        write(tmp_path, [1])
        late = time.monotonic() + 10
        while not fake.logged and time.monotonic() < late:
            time.sleep(0.01)
        assert fake.logged == [(1, {"loss": 1.0})]


def test_a_service_that_fails_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    broken, fake = Fake(), Fake()
    broken.log = lambda values, step: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    with following(tmp_path, ["wandb", "trackio"], "demo", {}):
        write(tmp_path, [1, 2])
    assert [step for step, _ in fake.logged] == [1, 2]
    assert capsys.readouterr().err.count("wandb does not take the metrics (ZeroDivisionError") == 1


def test_a_run_that_fails_still_hands_on_what_it_wrote(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(KeyError), following(tmp_path, ["wandb"], "demo", {}):
        write(tmp_path, [1])
        raise KeyError
    assert fake.logged and fake.ended == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, TRACKERS[name][0], None)
    told = f"track: {name} .*pip install {TRACKERS[name][1]}"
    with pytest.raises(ValueError, match=told), following(tmp_path, [name], "demo", {}):
        pass
    with pytest.raises(ValueError, match="no tracker named 'clearml'"), following(tmp_path, ["clearml"], "demo", {}):
        pass


def test_of_several_ranks_only_the_first_tracks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with following(tmp_path, ["no such tracker"], "demo", {}):
        pass


def test_tensorboard_holds_the_numbers_of_every_step(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with following(tmp_path, ["tensorboard"], "demo", {}):
        write(tmp_path, [1, 2, 4])
    read = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 1.0), (2, 0.5), (4, 0.25)]


def test_parts_of_a_line_are_paths_and_what_is_no_finite_number_is_left_out():
    line = {"step": 1, "loss": float("nan"), "w": 2, "ok": True, "by_source": {"a": {"loss": 0.5, "rows": 3}}}
    assert flat(line) == {"w": 2.0, "by_source/a/loss": 0.5, "by_source/a/rows": 3.0}
