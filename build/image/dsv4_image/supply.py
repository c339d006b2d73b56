"""Pushing, the bill of materials beside the image, signatures, and the policy that refuses what has none."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from dsv4_image.tools import Tools

SBOM_FILE = "sbom.cdx.json"


def push(tools: Tools, image: str, target: str, *, is_plain_http: bool = False) -> str:
    """Push an image and return the digest under which the registry has it."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "digest"
        tls = ["--tls-verify=false"] if is_plain_http else []
        tools.buildah("push", *tls, "--digestfile", str(told), image, f"docker://{target}")
        return told.read_text(encoding="ascii").strip()


def sbom_tag(target: str, digest: str) -> str:
    """Return the name under which an image's bill of materials lies: cosign's convention."""
    return f"{_repository(target)}:{digest.replace(':', '-')}.sbom"


def attach_sbom(tools: Tools, sbom: str, target: str, digest: str, *, is_plain_http: bool = False) -> str:
    """Push the bill of materials beside the image and return its name."""
    name = sbom_tag(target, digest)
    local = "localhost/dsv4-sbom:latest"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SBOM_FILE).write_text(sbom, encoding="utf-8")
        (Path(folder) / "Containerfile").write_text(f"FROM scratch\nCOPY {SBOM_FILE} /\n", encoding="utf-8")
        options = ["--format", "oci", "--timestamp", "1700000000", "--layers=false", "--tag", local]
        tools.buildah("bud", *options, "-f", f"{folder}/Containerfile", folder)
    push(tools, local, name, is_plain_http=is_plain_http)
    return name


def make_sbom(pins: Iterable[str], dpkg_status: str, version: str, *, distribution: str = "debian") -> str:
    """Return a CycloneDX bill of materials: Python packages as name==version, the distribution's by dpkg's list."""
    bom = Bom()
    image = Component(name="dsv4-triton", version=version, type=ComponentType.CONTAINER, bom_ref="image")
    bom.metadata.component = image
    for pin in pins:
        name, _, number = pin.partition("==")
        bom.components.add(_component("pypi", "", name, number))
    for name, number in debian_packages(dpkg_status):
        bom.components.add(_component("deb", distribution, name, number))
    bom.register_dependency(image, list(bom.components))
    return JsonV1Dot6(bom).output_as_string(indent=1)


def debian_packages(status: str) -> list[tuple[str, str]]:
    """Return name and version of every installed package of a dpkg status file."""
    found = []
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", block, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found.append((fields["Package"], fields["Version"]))
    return found


def _component(kind: str, namespace: str, name: str, version: str) -> Component:
    purl = PackageURL(type=kind, namespace=namespace or None, name=name, version=version)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl))


def sign(tools: Tools, target: str, digest: str, key: str, *, is_plain_http: bool = False) -> None:
    """Sign what the registry has under this digest with a GPG key; the signature goes where registries.d says."""
    tls = ["--src-tls-verify=false", "--dest-tls-verify=false"] if is_plain_http else []
    name = f"docker://{_repository(target)}@{digest}"
    tools.skopeo("copy", *tls, "--preserve-digests", "--sign-by", key, name, f"docker://{target}")


def write_policy(path: Path, repository: str, public_key: Path) -> None:
    """Write a policy.json that takes nothing from anywhere but signed images of this repository."""
    signed = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(public_key)}]
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {repository: signed}}}
    path.write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")


def write_lookaside(tools: Tools, registry: str, url: str) -> None:
    """Say where signatures of a registry are written and looked for."""
    text = f"docker:\n  {registry}:\n    sigstore: {url}\n    sigstore-staging: {url}\n"
    folder = tools.folder / "registries.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "default.yaml").write_text(text, encoding="utf-8")


def _repository(target: str) -> str:
    """A name without its tag; a port is no tag."""
    head, slash, tail = target.rpartition("/")
    return f"{head}{slash}{tail.split(':')[0].split('@')[0]}"
