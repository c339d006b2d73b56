"""The real servers of these tests, one start each per session."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_rig import GrpcStream, Start, open_stream

from dsv4_backend.launcher import Server, ServerOptions
from dsv4_backend.text import Vocabulary
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def shape_only(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """Config and tokenizer without weights: all that the zero-compute executor needs."""
    folder = tmp_path_factory.mktemp("shape")
    shutil.copy(tokenizer_path, folder)
    script = runpy.run_path(str(ROOT / "build" / "random_checkpoint.py"))
    values = script["config_values"](Vocabulary.load(tokenizer_path).size, "none")
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def start_server(shape_only: Path) -> Start:
    """Starts a server of the project's model repository without a model behind it; drains it in the end."""

    @contextmanager
    def start(settings: Mapping[str, str]) -> Iterator[Server]:
        options = ServerOptions(
            repository=ROOT / "model_repository",
            settings={"checkpoint": str(shape_only), "executor": "zero", **settings},
            arguments=("--disable-auto-complete-config",),
        )
        with Server(options) as server:
            yield server

    return start


@pytest.fixture(scope="session")
def server(start_server: Start) -> Iterator[Server]:
    """The server that most tests share."""
    with start_server({}) as server:
        yield server


@pytest.fixture
def stream(server: Server) -> Iterator[GrpcStream]:
    """A fresh gRPC stream to the shared server."""
    with open_stream(server.grpc_address) as stream:
        yield stream


@pytest.fixture(scope="session")
def vocabulary(tokenizer_path: Path) -> Vocabulary:
    """Bytes of every token."""
    return Vocabulary.load(tokenizer_path)
