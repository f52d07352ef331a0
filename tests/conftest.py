"""Projects to build: a fresh one, and one that has been built."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import Project, ratings


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


@pytest.fixture
def built(project: Project) -> Project:
    """A project that has been built, with one broken line and one rating off the scale."""
    project.raw([*ratings(), "{broken", {"prompt": "question 0?", "completion": "too good", "rating": 11}])
    assert project.build() == 0
    return project
