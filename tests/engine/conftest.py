"""A started engine that is checked for lost pages when the test ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_rig import Rig, make_rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    built = make_rig()
    built.engine.start()
    yield built
    built.engine.close()
    built.loop.check()
    assert all(used == 0 for used, _ in built.cache.usage().values()), "pages are lost"
