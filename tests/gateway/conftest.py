"""One gateway for most tests; each sets what the server behind it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import Gateway, answering, run_gateway
from real_rig import Real, run_real


@pytest.fixture(scope="session")
def shared_gateway(nano_checkpoint: Path) -> Iterator[Gateway]:
    with run_gateway(nano_checkpoint, model_names=("nano",), max_choices=4) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    """The shared gateway with a server that has seen nothing."""
    shared_gateway.server.calls.clear()
    shared_gateway.server.script = answering([])
    shared_gateway.server.is_up = True
    return shared_gateway


@pytest.fixture(scope="session")
def real(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The real server with the bundled model, and a gateway before it."""
    with run_real(nano_checkpoint, tmp_path_factory.mktemp("keys")) as found:
        yield found
