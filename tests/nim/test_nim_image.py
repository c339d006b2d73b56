"""The whole image, without a Docker engine: built, pushed, pulled by digest, run read-only, asked, stopped; and what
else it promises: one digest, labels, manifest, refusals, signature, bill of materials.

Times and sizes go to tests/results/image.json; the second build runs beside everything else. Another run of these tests
finds wheels, bases and an image of the same sources.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_image.build import LOCAL_BASE, Build
from dsv4_image.cli import bill
from dsv4_image.supply import attach_sbom
from dsv4_image.tools import LIMIT_S, Tools
from dsv4_nim.catalog import all_profiles
from image_rig import (
    ROOT,
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
from poll_rig import polling
from signing_rig import assert_only_signed_is_taken

pytestmark = pytest.mark.slow
RESULTS = "image.json"
TAG, AGAIN = "localhost/dsv4-test:whole", "localhost/dsv4-test:again"
LONG_TOKENS = 64
READY_S = 600.0  # a limit, not a claim: the figure is in the results
ASK_RIGHTS = "id -u; grep -E 'CapEff|NoNewPrivs' /proc/1/status; touch /x || true; touch /opt/nim/.cache/y && echo kept"


@pytest.fixture(scope="module")
def build(figures: Figures) -> Build:
    return build_measured(TAG, figures)


@pytest.fixture(scope="module")
def builds_again(build: Build) -> Iterator[subprocess.Popen[bytes]]:
    """The same once more by somebody else: another process with another umask, beside everything that follows."""
    command = [sys.executable, str(ROOT / "build" / "image" / "main.py"), "build", "--tag", AGAIN]
    with subprocess.Popen(command, umask=0o077) as process:
        yield process
        process.terminate()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """Tools with no image at all."""
    with empty_store(tmp_path_factory.mktemp("empty")) as tools:
        yield tools


def test_a_pull_by_digest_runs_read_only_chats_and_drains(
    builds_again: subprocess.Popen[bytes], pushed: Pushed, empty: Tools, figures: Figures, tmp_path: Path
) -> None:
    with figures.timing("pull"):
        empty.podman("pull", "--tls-verify=false", pushed.by_digest)
    with running(empty, pushed.by_digest, tmp_path / "cache", "dsv4-test") as container:
        figures.values["live_s"] = round(
            wait_for(lambda: status(container.api_port, "/v1/health/live") == 200, READY_S, "the live probe"), 1
        )
        assert status(container.api_port, "/v1/health/ready") == 503
        with polling(container.api_port, "/v1/health/live", "/v1/manifest") as seen:
            ready_s = wait_for(
                lambda: status(container.api_port, "/v1/health/ready") == 200, READY_S, "the ready probe"
            )
        figures.values["ready_s"] = round(figures.values["live_s"] + ready_s, 1)
        assert (seen.failures, len(seen.bodies["/v1/manifest"])) == ([], 1)
        assert "ready" in empty.podman("exec", container.name, "nim-healthcheck")
        texts = stream_chat(container.grpc_port, "Hello")
        assert len(texts) > 1 and "".join(texts).strip()
        pieces = list(stream_openai(container.api_port, "Hello"))
        assert len(pieces) > 1 and "".join(text for text, _ in pieces).strip()
        assert_nims_routes_answer(container.api_port)
        assert_it_has_no_rights(empty.podman("exec", container.name, "sh", "-c", ASK_RIGHTS))
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


def assert_it_has_no_rights(told: str) -> None:
    """From inside: uid 1000, no capability, none to be had, and only the cache can be written."""
    assert told.splitlines()[0] == "1000"
    assert "CapEff:\t0000000000000000" in told and "NoNewPrivs:\t1" in told
    assert "Read-only file system" in told and "kept" in told


def test_two_builds_from_one_base_have_one_digest_whoever_builds(
    build: Build, builds_again: subprocess.Popen[bytes], figures: Figures
) -> None:
    assert builds_again.wait(LIMIT_S) == 0
    second = Build(root=ROOT, tools=build.tools, tag=AGAIN).last()
    figures.values["second_build_s"] = second.seconds if second else 0.0
    assert build.digest(AGAIN) == build.digest(TAG) != ""


def test_labels_name_the_base_by_digest(build: Build) -> None:
    labels = json.loads(build.tools.podman("image", "inspect", TAG))[0]["Labels"]
    assert labels["org.opencontainers.image.base.digest"] == build.digest(LOCAL_BASE)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_a_profile_that_does_not_fit_stops_the_container_with_the_reason(build: Build) -> None:
    command = build.tools.podman_command(
        "run", "--rm", "--network=none", "--read-only", "--env=NIM_MODEL_PROFILE=triton-nvfp4-tp8-pp1", TAG
    )
    done = subprocess.run(command, env=build.tools.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "needs 8 x B200; this machine has no GPU" in done.stderr


def test_the_operator_can_read_the_manifest(build: Build) -> None:
    manifest = "/opt/nim/etc/default/model_manifest.yaml"
    text = build.tools.podman("run", "--rm", "--network=none", "--entrypoint=sh", TAG, "-c", f"cat {manifest}")
    assert text.startswith("schema_version: 2.0.0")


def test_an_unsigned_image_is_refused_and_a_signed_one_is_taken(
    pushed: Pushed, figures: Figures, tmp_path: Path
) -> None:
    with figures.timing("signing"):
        assert_only_signed_is_taken(pushed, tmp_path)


def test_the_bill_of_materials_lies_beside_the_image(pushed: Pushed, build: Build) -> None:
    text = bill(TAG, ROOT, build.tools)
    name = attach_sbom(build.tools, text, pushed.target, pushed.digest, is_plain_http=True)
    assert name == f"{pushed.repository}:{pushed.digest.replace(':', '-')}.sbom"
    names = {(each["name"], each["version"]) for each in json.loads(text)["components"]}
    assert {"grpcio", "numpy", "torch", "dsv4-triton", "python3.11", "libc6"} <= {each[0] for each in names}
    tags = build.tools.skopeo("list-tags", "--tls-verify=false", f"docker://{pushed.repository}")
    assert name.rpartition(":")[2] in tags
