"""The server that the tests of the whole story share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from story_rig import Story

from dsv4_backend.launcher import Server, ServerOptions
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def story(nano_checkpoint: Path) -> Iterator[Story]:
    settings = {"checkpoint": str(nano_checkpoint), "num_threads": "1"}
    with Server(ServerOptions(repository=ROOT / "model_repository", settings=settings)) as server:
        yield Story(server, nano_checkpoint)
