"""The whole image, without a Docker engine: built, pushed, pulled by digest, run read-only, asked, stopped.

Times and sizes go to tests/results/image.json.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_image.build import Build
from dsv4_image.tools import Tools
from dsv4_nim.catalog import all_profiles
from image_rig import (
    Figures,
    Pushed,
    body_of,
    build_measured,
    empty_store,
    running,
    status,
    stream_chat,
    stream_openai,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.slow
RESULTS = "image.json"
TAG = "localhost/dsv4-test:whole"
LONG_TOKENS = 64
READY_S = 600.0  # a limit, not a claim: the figure is in the results


@pytest.fixture(scope="module")
def build(figures: Figures) -> Build:
    return build_measured(TAG, figures)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """Tools with no image at all."""
    with empty_store(tmp_path_factory.mktemp("empty")) as tools:
        yield tools


def test_a_pull_by_digest_runs_read_only_chats_and_drains(
    pushed: Pushed, empty: Tools, figures: Figures, tmp_path: Path
) -> None:
    with figures.timing("pull"):
        empty.podman("pull", "--tls-verify=false", pushed.by_digest)
    with running(empty, pushed.by_digest, tmp_path / "cache", "dsv4-test") as container:
        figures.values["live_s"] = round(
            wait_for(lambda: status(container.api_port, "/v1/health/live") == 200, READY_S, "the live probe"), 1
        )
        assert status(container.api_port, "/v1/health/ready") == 503
        ready_s = wait_for(lambda: status(container.api_port, "/v1/health/ready") == 200, READY_S, "the ready probe")
        figures.values["ready_s"] = round(figures.values["live_s"] + ready_s, 1)
        health = ["exec", container.name, "nim-healthcheck"]
        assert "ready" in empty.podman(*health)
        texts = stream_chat(container.grpc_port, "Hello")
        assert len(texts) > 1 and "".join(texts).strip()
        pieces = list(stream_openai(container.api_port, "Hello"))
        assert len(pieces) > 1 and "".join(text for text, _ in pieces).strip()
        assert_nims_routes_answer(container.api_port)
        rights = empty.podman("exec", container.name, "sh", "-c", "id -u; grep CapEff /proc/1/status; touch /x || true")
        assert rights.splitlines()[0] == "1000" and "0000000000000000" in rights and "Read-only" in rights
        stream = stream_openai(container.api_port, "Hello", LONG_TOKENS, ignore_eos=True)
        next(stream)
        codes: list[int] = []
        stopping = threading.Thread(target=lambda: codes.append(container.stop()))
        with figures.timing("stop"):
            stopping.start()
            reasons = [reason for _, reason in stream if reason]
            stopping.join()
        assert (reasons, codes) == (["length"], [0]), container.log()


def assert_nims_routes_answer(port: int) -> None:
    """Through the gateway, which has the API port once the container is ready."""
    assert json.loads(body_of(port, "/v1/metadata"))["selectedModelProfileId"] == all_profiles()[0].id
    assert "Apache License" in body_of(port, "/v1/license")
    assert "dsv4_requests_total" in body_of(port, "/v1/metrics")
    paths = ("/v1/models", "/v1/version", "/v1/manifest", "/v1/health/live", "/v1/health/ready")
    assert [status(port, path) for path in paths] == [200] * len(paths)
    assert status(port, "/v1/nothing") == 404
