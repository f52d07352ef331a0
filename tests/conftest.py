"""Projects to build: a fresh one, and one that has been built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project, SetAside, build_demo, ratings


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By `--dist loadfile` one process runs all of tests/flows, which share a Prefect server.

    Files are taken in the order of their names: by the number of their tests, as xdist would take them, those with the
    few long tests came last, and one process waited for the other.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/flows" if nodeid.startswith("tests/flows/") else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors of a handful of numbers are computed four times as fast by one thread as by a pool."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project with a raw file of ratings and a spec."""
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.raw(ratings())
    made.spec()
    return made


@pytest.fixture(scope="session")
def set_aside(tmp_path_factory: pytest.TempPathFactory) -> SetAside:
    """See `SetAside`."""
    return SetAside(tmp_path_factory.mktemp("set_aside"))


@pytest.fixture
def built(set_aside: SetAside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project that has been built, with one broken line and one rating off the scale."""
    with set_aside.copied("built", build_demo, monkeypatch) as made:
        yield made
