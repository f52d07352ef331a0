"""A run's metrics in TensorBoard, trackio, MLflow or Weights & Biases: read from its folder while it is written.

A thread follows metrics.jsonl and hands on each new line, so training waits for no tracker, and one that fails costs
its own picture and not the run. What was handed on is written down: a run that resumes goes on in the same place.
Online rounds are runs within a run: the one around them follows them all, and counts their steps on.
"""

import importlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_data.files import read_json, write_text
from rlhf_data.scoring.progress import say

PERIOD = 2.0  # seconds between looks at the file
_STATE = "tracked.json"
_ROUNDS: ContextVar[list[Path] | None] = ContextVar("rounds", default=None)  # of the run that is followed around us


class Tracker(NamedTuple):
    """An open tracker.

    Attributes:
        log: (step, metrics by name) → what the tracker does with them.
        close: ends it.
    """

    log: Callable[[int, dict[str, float]], Any]
    close: Callable[[], Any]


class _Followed(NamedTuple):
    name: str
    tracker: Tracker


def flat(line: dict[str, Any], under: str = "") -> dict[str, float]:
    """The finite numbers of a line by their paths, but for the step.

    >>> flat({"step": 3, "loss": 0.5, "by_source": {"hh": {"loss": 1.0}}})
    {'loss': 0.5, 'by_source/hh/loss': 1.0}
    """
    found: dict[str, float] = {}
    for key, value in line.items():
        path = f"{under}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{path}/")
        elif path != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[path] = float(value)
    return found


@contextmanager
def following(
    run: Path, names: Sequence[str], title: str, arguments: dict[str, Any], *, period: float = PERIOD
) -> Iterator[None]:
    """Hand every line of a run's metrics to trackers as long as the block runs, and what is left at its end.

    Inside a block of another run this one is a round of that: its lines go to the trackers there.

    Args:
        run: the run's folder; metrics.jsonl in it may not be there yet.
        names: of TRACKERS; of several ranks, the first one tracks.
        title: the project that the run is of.
        arguments: what the run was asked to do, for trackers that show it.
        period: seconds between looks.

    Raises:
        ValueError: a tracker that is not installed, or no such tracker.
    """
    if (around := _ROUNDS.get()) is not None:
        around.append(run)
        yield
        return
    if not names or os.environ.get("RANK", "0") != "0":
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = read_json(run / _STATE) or {}
    opened = [_Followed(name, _open(name, run, title, arguments, state)) for name in names]
    over = threading.Event()
    rounds: list[Path] = []
    token = _ROUNDS.set(rounds)

    def watch() -> None:
        while not over.wait(period):
            _hand_on(run, rounds, opened, state)

    thread = threading.Thread(target=watch, name="trackers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _ROUNDS.reset(token)
        over.set()
        thread.join()
        _hand_on(run, rounds, opened, state)
        for name, tracker in opened:
            _try(name, tracker.close)


def _open(name: str, run: Path, title: str, arguments: dict[str, Any], state: dict[str, Any]) -> Tracker:
    if name not in TRACKERS:
        raise ValueError(f"no tracker named {name!r}; known trackers: {', '.join(TRACKERS)}")
    module, package, opens = TRACKERS[name]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"track: {name} needs a package that is not installed ({error}): pip install {package}, or leave it out"
        ) from error
    return opens(library, run, title, arguments, state.setdefault(name, {"step": 0}))


def _lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]  # what follows the last newline is being written


def lines_of_rounds(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The metrics of rounds one after the other, of the last one what is there yet; steps go on, `round` is from 1."""
    found: list[dict[str, Any]] = []
    for number, run in enumerate(runs, start=1):
        before = found[-1]["step"] if found else 0
        found += [{**line, "step": line["step"] + before, "round": number} for line in _lines(run)]
    return found


def _hand_on(run: Path, rounds: list[Path], opened: list[_Followed], state: dict[str, Any]) -> None:
    """Each whole line that a tracker has not had; one that fails is left out from then on."""
    lines = lines_of_rounds(rounds) if rounds else _lines(run)
    for followed in list(opened):
        had = state[followed.name]
        for line in lines:
            if line["step"] > had["step"]:
                if not _try(followed.name, lambda f=followed, s=line: f.tracker.log(s["step"], flat(s))):
                    opened.remove(followed)
                    break
                had["step"] = line["step"]
    if lines:
        write_text(run / _STATE, json.dumps(state))


def _try(name: str, act: Callable[[], Any]) -> bool:
    """Whether a tracker did what it was asked; what a service may raise is said and costs no step."""
    try:
        act()
    except Exception as error:
        say(f"{name} does not take the metrics ({type(error).__name__}: {error}); they are in the run's metrics.jsonl")
        return False
    return True


def _tensorboard(library: Any, run: Path, title: str, arguments: dict[str, Any], had: dict[str, Any]) -> Tracker:
    writer = library.SummaryWriter(str(run / "tensorboard"), purge_step=had["step"] + 1)

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _trackio(library: Any, run: Path, title: str, arguments: dict[str, Any], had: dict[str, Any]) -> Tracker:
    library.init(project=title, name=run.name, config=_words(arguments), resume="allow")
    return Tracker(lambda step, values: library.log(values, step=step), library.finish)


def _mlflow(library: Any, run: Path, title: str, arguments: dict[str, Any], had: dict[str, Any]) -> Tracker:
    library.set_experiment(title)
    started = library.start_run(run_id=had.get("run_id"), run_name=run.name)
    if "run_id" not in had:
        library.log_params(_words(arguments))
        had["run_id"] = started.info.run_id
    return Tracker(lambda step, values: library.log_metrics(values, step=step), library.end_run)


def _wandb(library: Any, run: Path, title: str, arguments: dict[str, Any], had: dict[str, Any]) -> Tracker:
    opened = library.init(
        project=title, id=run.name, name=run.name, dir=str(run), config=_words(arguments), resume="allow"
    )
    return Tracker(lambda step, values: opened.log(values, step=step), opened.finish)


def _words(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with plain values only."""
    return {k: v if isinstance(v, str | int | float) else json.dumps(v, default=str) for k, v in arguments.items()}


# Name → module, what pip installs, and what opens it: (library, run, title, arguments, what it has had) → a tracker.
Opens = Callable[[Any, Path, str, dict[str, Any], dict[str, Any]], Tracker]
TRACKERS: dict[str, tuple[str, str, Opens]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", _tensorboard),
    "trackio": ("trackio", "trackio", _trackio),
    "mlflow": ("mlflow", "mlflow", _mlflow),
    "wandb": ("wandb", "wandb", _wandb),
}
