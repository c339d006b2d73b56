"""What the documents promise exists: each named test, the example policy, a Containerfile without complaints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dsv4_image.base import debian_mirror
from dsv4_image.build import revision, version
from dsv4_image.context import FETCHED, snapshot
from dsv4_image.supply import debian_packages, make_sbom, write_policy
from dsv4_image.tools import ImageError, Tools
from dsv4_image.wheels import LOCK
from dsv4_nim.settings import BY_NAME
from dsv4_setup.locks import read_lock

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent
README = ROOT / "build" / "nim" / "README.md"
CONTAINERFILES = ("build/Containerfile", "build/image/Containerfile.base")


def test_every_test_that_the_conventions_table_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text(encoding="utf-8")))
    there = {
        name for path in TESTS.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named - there == set()
    assert len(named) > 30


def test_every_variable_that_the_document_names_is_in_the_table() -> None:
    named = set(re.findall(r"\bNIM_[A-Z_]+[A-Z]\b", README.read_text(encoding="utf-8")))
    families = {"NIM_SSL", "NIM_CORS"}
    assert named - set(BY_NAME) - families == set()


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.is_file() else shutil.which("hadolint") or "hadolint"
    done = subprocess.run([found, str(ROOT / name)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_example_policy_is_what_the_tests_enforce(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", "registry.example/nim/dsv4", Path("/etc/pki/containers/dsv4.asc"))
    example = json.loads((ROOT / "build" / "nim" / "policy.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "policy.json").read_text(encoding="utf-8")) == example


def test_a_bill_of_materials_names_every_pin_and_package_with_its_address() -> None:
    status = "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\nPackage: gone\nStatus: deinstall ok\n"
    pins = [f"{name}=={number}" for name, number in read_lock(ROOT / "build" / "locks" / f"{LOCK}.txt").items()]
    bill = json.loads(make_sbom(pins, status, "0.1.0"))
    addresses = {component["purl"] for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert "pkg:deb/debian/libc6@2.36-9" in addresses
    assert len(addresses) == len(pins) + 1
    assert debian_packages(status) == [("libc6", "2.36-9")]


def test_the_mirror_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.example/debian")
    assert debian_mirror() == "http://mirror.example/debian"


def test_version_and_revision_come_from_the_checkout(tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", version(ROOT))
    assert revision(tmp_path) == ""


def test_a_build_sees_tracked_files_only_with_the_modes_of_git(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    (root / "kernels").mkdir(parents=True)
    (root / FETCHED / "wheels").mkdir(parents=True)
    (root / FETCHED / "requirements.txt").write_text("one==1\n")
    (root / FETCHED / "wheels" / "one-1-py3-none-any.whl").write_bytes(b"wheel")
    (root / FETCHED / "wheels" / "two-1-py3-none-any.whl").write_bytes(b"of an earlier lock")
    for name in ("tracked.py", "rubbish.py"):
        (root / "kernels" / name).write_text("pass\n")
    (root / "kernels" / "tracked.py").chmod(0o600)
    for command in (["init", "-q"], ["add", "kernels/tracked.py"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    made = snapshot(root, tmp_path / "context")
    files = {str(path.relative_to(made)): path.stat().st_mode & 0o777 for path in made.rglob("*") if path.is_file()}
    assert files["kernels/tracked.py"] == 0o644
    assert set(files) == {
        "kernels/tracked.py",
        f"{FETCHED}/requirements.txt",
        f"{FETCHED}/wheels/one-1-py3-none-any.whl",
    }


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is not a git checkout"):
        snapshot(tmp_path, tmp_path / "context")


def test_a_long_path_of_a_checkout_still_gives_podman_a_short_run_folder(tmp_path: Path) -> None:
    command = Tools(tmp_path / ("deep/" * 12)).podman_command("info")
    other = Tools(tmp_path / ("deep/" * 13)).podman_command("info")
    folders = [each[each.index("--runroot") + 1] for each in (command, other)]
    assert all(len(folder) <= 50 for folder in folders)
    assert len(set(folders)) == 2


def test_a_tool_that_does_not_end_is_told_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"`sleep 60 …` has not ended after 0.1 s"):
        Tools(tmp_path).run(["sleep", "60"], timeout_s=0.1)


def test_missing_tools_are_all_named_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"buildah, podman, skopeo, runc: not on PATH. Debian: apt-get install"):
        Tools(tmp_path).prepare()
