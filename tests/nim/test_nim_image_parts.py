"""What the image promises besides serving: one digest, labels, manifest, refusals, signature, bill of materials.

The same Containerfile on the same base, without the packages that only a running model needs: a build takes a minute.
Times and sizes go to tests/results/image-parts.json.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from dsv4_image.build import LOCAL_BASE, LOCAL_BUILDER, Build
from dsv4_image.cli import bill
from dsv4_image.supply import attach_sbom
from image_rig import ROOT, Figures, Pushed, build_measured
from signing_rig import assert_only_signed_is_taken

pytestmark = pytest.mark.slow
RESULTS = "image-parts.json"
TAG = "localhost/dsv4-test:parts"
LEFT_OUT = ("torch", "transformers", "xgrammar", "apache-tvm-ffi", "sympy", "networkx", "mpmath")


@pytest.fixture(scope="module")
def build(figures: Figures) -> Build:
    return build_measured(TAG, figures, LEFT_OUT)


def test_two_builds_from_one_base_have_one_digest(build: Build, figures: Figures) -> None:
    first = build.digest(TAG)
    with figures.timing("second_build"):
        build.build_app(LOCAL_BASE, LOCAL_BUILDER, tag=f"{TAG}-again")
    assert build.digest(f"{TAG}-again") == first


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


def test_an_unsigned_image_is_refused_and_a_signed_one_is_taken(pushed: Pushed, tmp_path: Path) -> None:
    assert_only_signed_is_taken(pushed, tmp_path)


def test_the_bill_of_materials_lies_beside_the_image(pushed: Pushed, build: Build, tmp_path: Path) -> None:
    text = bill(TAG, ROOT, build.tools)
    name = attach_sbom(build.tools, text, pushed.target, pushed.digest, is_plain_http=True)
    assert name == f"{pushed.repository}:{pushed.digest.replace(':', '-')}.sbom"
    names = {(each["name"], each["version"]) for each in json.loads(text)["components"]}
    assert {"grpcio", "numpy", "dsv4-triton", "python3.11", "libc6"} <= {each[0] for each in names}
    tags = build.tools.skopeo("list-tags", "--tls-verify=false", f"docker://{pushed.repository}")
    assert name.rpartition(":")[2] in tags
