"""The way of every image through the real tools, with one that is small: built twice, pushed, pulled, run, signed.

The image is Debian's static busybox. What the real Containerfile gives takes test_nim_image.py, which is
slow; the tools, options, rights, signatures and digests are the same here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_image.build import OPTIONS, Build
from dsv4_image.supply import attach_sbom, make_sbom
from dsv4_image.tools import Tools
from image_rig import ROOT, Figures, Pushed, empty_store, running
from signing_rig import assert_only_signed_is_taken

pytestmark = pytest.mark.ci
RESULTS = "image-tools.json"
TAG = "localhost/dsv4-test:tools"
ASK_RIGHTS = "id -u; grep -E 'CapEff|NoNewPrivs' /proc/1/status; touch /x || true; touch /opt/nim/.cache/y && echo kept"
# As nim-serve does it: PID 1 handles SIGTERM itself, ends what runs, and exits with 0.
SERVE = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def build(figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    folder = tmp_path_factory.mktemp("build")
    with empty_store(folder / "store") as tools:
        made = Build(root=ROOT, tools=tools, tag=TAG)
        with figures.timing("build"):
            bud(made, folder / "one", TAG)
        yield made


def bud(build: Build, context: Path, tag: str) -> None:
    """Build with the options of every image; the context's own times and the umask must not count."""
    context.mkdir()
    shutil.copy("/bin/busybox", context / "busybox")
    (context / "Containerfile").write_text(
        'FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
        f"USER 1000:1000\nCMD {json.dumps(['/bin/sh', '-c', SERVE])}\n"
    )
    build.tools.buildah("bud", *OPTIONS, "--tag", tag, "-f", str(context / "Containerfile"), str(context))


def test_two_builds_of_the_same_files_have_one_digest_whenever_and_whoever(build: Build, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        bud(build, tmp_path / "other", f"{TAG}-again")
    finally:
        os.umask(mask)
    assert build.digest(f"{TAG}-again") == build.digest(TAG) != ""


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Tools]:
    with empty_store(tmp_path / "empty") as tools:
        yield tools


def test_a_pull_by_digest_runs_without_rights_and_stops_with_code_0(
    pushed: Pushed, empty: Tools, figures: Figures, tmp_path: Path
) -> None:
    with figures.timing("pull"):
        empty.podman("pull", "--tls-verify=false", pushed.by_digest)
    with running(empty, pushed.by_digest, tmp_path / "cache", "dsv4-test-tools") as container:
        told = empty.podman("exec", container.name, "sh", "-c", ASK_RIGHTS)
        assert told.splitlines()[0] == "1000"
        assert "CapEff:\t0000000000000000" in told and "NoNewPrivs:\t1" in told
        assert "Read-only file system" in told and "kept" in told
        with figures.timing("stop"):
            assert container.stop() == 0


def test_an_unsigned_image_is_refused_by_the_policy(pushed: Pushed, tmp_path: Path) -> None:
    assert_only_signed_is_taken(pushed, tmp_path)


def test_a_bill_of_materials_lies_beside_what_was_pushed(pushed: Pushed, build: Build) -> None:
    name = attach_sbom(build.tools, make_sbom([], "", "0"), pushed.target, pushed.digest, is_plain_http=True)
    tags = build.tools.skopeo("list-tags", "--tls-verify=false", f"docker://{pushed.repository}")
    assert name.rpartition(":")[2] in json.loads(tags)["Tags"]
