"""The image, without a Docker engine: built, pushed, pulled by digest, run read-only, asked, stopped; signed.

Times and sizes go to tests/results/image.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dsv4_image.build import LOCAL_BASE, LOCAL_BUILDER, Build
from dsv4_image.cli import bill
from dsv4_image.supply import attach_sbom, push, sign, write_lookaside, write_policy
from dsv4_image.tools import ImageError, Tools
from image_rig import ROOT, image_build, registry, running, status, stream_chat, wait_for

pytestmark = pytest.mark.slow
RESULTS = ROOT / "tests" / "results" / "image.json"
TAG = "localhost/dsv4-test:one"


@dataclass
class Figures:
    """Seconds and bytes as they were measured."""

    values: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, started: float) -> None:
        self.values[name] = round(time.monotonic() - started, 1)


@dataclass(frozen=True)
class Pushed:
    """An image in a registry."""

    tools: Tools
    target: str
    digest: str

    @property
    def repository(self) -> str:
        return self.target.rpartition(":")[0]

    @property
    def by_digest(self) -> str:
        return f"{self.repository}@{self.digest}"


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    found = Figures()
    yield found
    command = "python -m pytest -m slow tests/nim/test_nim_image.py"
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"command": command, "cores": os.cpu_count(), "load": os.getloadavg()[0], **found.values}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def build(figures: Figures) -> Build:
    made = image_build(TAG)
    started = time.monotonic()
    made.run()
    figures.timed("build_s", started)
    size = made.tools.podman("image", "inspect", "--format={{.Size}}", TAG)
    figures.values["image_bytes"] = int(size)
    return made


@pytest.fixture(scope="module")
def pushed(build: Build, figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    folder = tmp_path_factory.mktemp("registry")
    with registry(folder) as address:
        target = f"{address}/nim/dsv4:test"
        started = time.monotonic()
        digest = push(build.tools, TAG, target, is_plain_http=True)
        figures.timed("push_s", started)
        blobs = (path for path in (folder / "registry").rglob("data") if path.is_file())
        figures.values["pushed_bytes"] = sum(path.stat().st_size for path in blobs)
        yield Pushed(build.tools, target, digest)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Tools with no image at all."""
    tools = Tools(tmp_path_factory.mktemp("empty"))
    tools.prepare()
    return tools


def test_two_builds_from_one_base_have_one_digest(build: Build, figures: Figures) -> None:
    first = build.digest(TAG)
    started = time.monotonic()
    build.build_app(LOCAL_BASE, LOCAL_BUILDER, tag="localhost/dsv4-test:two")
    figures.timed("second_build_s", started)
    assert build.digest("localhost/dsv4-test:two") == first


def test_labels_name_the_base_by_digest(build: Build) -> None:
    labels = json.loads(build.tools.podman("image", "inspect", TAG))[0]["Labels"]
    assert labels["org.opencontainers.image.base.digest"] == build.digest(LOCAL_BASE)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_a_pull_by_digest_runs_read_only_chats_and_drains(
    pushed: Pushed, empty: Tools, figures: Figures, tmp_path: Path
) -> None:
    started = time.monotonic()
    empty.podman("pull", "--tls-verify=false", pushed.by_digest)
    figures.timed("pull_s", started)
    with running(empty, pushed.by_digest, tmp_path / "cache", "dsv4-test") as container:
        figures.values["live_s"] = round(
            wait_for(lambda: status(container.api_port, "/v1/health/live") == 200, 60.0, "the live probe"), 1
        )
        assert status(container.api_port, "/v1/health/ready") == 503
        ready_s = wait_for(lambda: status(container.api_port, "/v1/health/ready") == 200, 120.0, "the ready probe")
        figures.values["ready_s"] = round(figures.values["live_s"] + ready_s, 1)
        health = ["exec", container.name, "nim-healthcheck"]
        assert "ready" in empty.podman(*health)
        texts = stream_chat(container.grpc_port, "Hello")
        assert len(texts) > 1 and "".join(texts).strip()
        rights = empty.podman("exec", container.name, "sh", "-c", "id -u; grep CapEff /proc/1/status; touch /x || true")
        assert rights.splitlines()[0] == "1000" and "0000000000000000" in rights and "Read-only" in rights
        started = time.monotonic()
        assert container.stop() == 0
        figures.timed("stop_s", started)


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


def test_an_unsigned_image_is_refused_and_a_signed_one_is_taken(pushed: Pushed, empty: Tools, tmp_path: Path) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    signing = Tools(tmp_path / "signer", variables={"GNUPGHOME": str(home)})
    signing.prepare()
    user = "builder@example.org"
    signing.run(["gpg", "--batch", "--passphrase", "", "--quick-gen-key", user, "rsa2048", "sign", "1d"])
    public = tmp_path / "key.asc"
    public.write_text(signing.run(["gpg", "--armor", "--export", user]), encoding="utf-8")
    host = pushed.target.partition("/")[0]
    policy = tmp_path / "policy.json"
    write_policy(policy, pushed.repository, public)
    strict = Tools(tmp_path / "strict", policy=policy)
    strict.prepare()
    for tools in (signing, strict):
        write_lookaside(tools, host, f"file://{tmp_path}/signatures")
    copy = ["copy", "--src-tls-verify=false", f"docker://{pushed.by_digest}"]
    with pytest.raises(ImageError, match="A signature was required, but no signature exists"):
        strict.skopeo(*copy, f"dir:{tmp_path}/unsigned")
    sign(signing, pushed.target, pushed.digest, user, is_plain_http=True)
    strict.skopeo(*copy, f"dir:{tmp_path}/signed")
    assert (tmp_path / "signed" / "manifest.json").is_file()
    other = attach_sbom(signing, "{}", f"{host}/other:latest", "sha256:0", is_plain_http=True)
    with pytest.raises(ImageError, match="rejected by policy"):
        strict.skopeo("copy", "--src-tls-verify=false", f"docker://{other}", f"dir:{tmp_path}/other")


def test_the_bill_of_materials_lies_beside_the_image(pushed: Pushed, build: Build, tmp_path: Path) -> None:
    text = bill(TAG, ROOT, build.tools)
    name = attach_sbom(build.tools, text, pushed.target, pushed.digest, is_plain_http=True)
    assert name == f"{pushed.repository}:{pushed.digest.replace(':', '-')}.sbom"
    names = {(each["name"], each["version"]) for each in json.loads(text)["components"]}
    assert {"torch", "numpy", "python3.11", "libc6"} <= {each[0] for each in names}
    tags = build.tools.skopeo("list-tags", "--tls-verify=false", f"docker://{pushed.repository}")
    assert name.rpartition(":")[2] in tags
