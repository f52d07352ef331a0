"""One Prefect server for all tests of the flows, and flows loaded by path, as deployed."""

import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds: the server needs 10 here, more on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # Prefect leaves connections of its clients to the garbage collector.
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What Prefect left open is collected here, not in a test of another folder, where warnings are errors."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="package")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect, imported with a home of its own and without analytics."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        environment.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        environment.setenv("DO_NOT_TRACK", "1")
        pytest.importorskip("prefect")
        yield


@pytest.fixture(scope="package")
def server(installed: None) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=PATIENCE):
        yield


@pytest.fixture(scope="package")
def load(installed: None) -> Callable[[str], Any]:
    """A flow from its entrypoint."""
    from prefect.flows import load_flow_from_entrypoint

    def load(entrypoint: str) -> Any:
        path, _, name = entrypoint.partition(":")
        return load_flow_from_entrypoint(f"{ROOT / path}:{name}", use_placeholder_flow=False)

    return load


@pytest.fixture(scope="package")
def task_runs(server: None) -> Callable[..., dict[str, Any]]:
    """The task runs of a flow run by name, as soon as the server has recorded all of them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    def task_runs(state: Any, *, n: int) -> dict[str, Any]:
        where = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        until = time.monotonic() + PATIENCE
        while True:  # they travel as events
            with get_client(sync_client=True) as client:
                found = client.read_task_runs(flow_run_filter=where)
            ended = {run.name: run for run in found if run.state is not None and run.state.is_final()}
            if len(ended) >= n or time.monotonic() > until:
                return ended
            time.sleep(0.1)

    return task_runs


@pytest.fixture(scope="package")
def artifact(server: None) -> Callable[[str], Any]:
    """The latest artifact of a key; a table as rows."""
    from prefect.artifacts import Artifact

    def artifact(key: str) -> Any:
        found: Any = Artifact.get(key)
        assert found is not None, key
        return json.loads(found.data) if found.type == "table" else found.data

    return artifact


SPEC = """\
version: 1
name: {name}
sources:
  one: {{path: {raw}/one.jsonl, license: MIT}}
  two: {{path: {raw}/two.jsonl, license: MIT}}
split: {{test: 0.25}}
shape: {{to: paired, pairing: as_given}}
"""


def write_raw(folder: Path) -> Path:
    """Two files of 20 pairs; in the second, one pair's answers are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one", "two"):
        rows = [
            {"prompt": f"{name}: what is {k} + 1?", "chosen": f"It is {k + 1}.", "rejected": f"It is {k + 2}, I think."}
            for k in range(20)
        ]
        if name == "two":
            rows[0]["rejected"] = rows[0]["chosen"]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_spec(folder: Path, name: str = "sums", *, rest: str = "") -> Path:
    """A spec that publishes into `folder`/snapshots; `rest` stands between shape and publish."""
    text = SPEC.format(name=name, raw=write_raw(folder / "raw"))
    file = folder / "specs" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{text}{rest}publish: {{to: {folder}/snapshots/{name}}}\n")
    return file
