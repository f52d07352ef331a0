"""Tables of small cases are held in memory; see `way.Folder`."""

from collections.abc import Iterator

import pytest

from tests.laws.way import in_memory


@pytest.fixture(scope="module", autouse=True)
def tables_in_memory() -> Iterator[None]:
    with in_memory():
        yield
