"""Locks pin exactly, and all targets agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from dsv4_setup.locks import TARGETS, LockError, digest, normal_name, read_lock

ROOT = Path(__file__).parents[2]
LOCKS = {target: ROOT / "build" / "locks" / f"{target}.txt" for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_every_line_of_a_lock_is_an_exact_pin(target: str) -> None:
    assert read_lock(LOCKS[target])


def test_targets_agree_on_what_they_share() -> None:
    cpu = read_lock(LOCKS["cpu"])
    others = [pin for target in ("nvidia-image", "gpu") for pin in read_lock(LOCKS[target]).items()]
    assert [pin for pin in others if pin[0] in cpu and cpu[pin[0]] != pin[1]] == []


def test_the_cpu_lock_holds_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(pin for name in ("dev", "plot") for pin in project["optional-dependencies"][name]),
    ]
    names = {normal_name(re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]) for requirement in asked}
    assert names - set(read_lock(LOCKS["cpu"])) == set()


@pytest.mark.parametrize("target", ["nvidia-image", "gpu"])
def test_the_images_own_server_is_kept(target: str) -> None:
    assert "nvidia-pytriton" not in read_lock(LOCKS[target])


def test_the_gpu_lock_leaves_torch_and_triton_to_tensorrt_llm() -> None:
    pins = read_lock(LOCKS["gpu"])
    assert ("tensorrt-llm" in pins, "torch" in pins, "triton" in pins) == (True, False, False)


@pytest.mark.parametrize("line", ["torch", "torch>=2.11", "numpy==1.*", "a[b]==1", "-r other.txt"])
def test_a_line_that_is_not_exact_is_refused(tmp_path: Path, line: str) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"six==1.17.0\n{line}\n", encoding="utf-8")
    with pytest.raises(LockError, match="line 2"):
        read_lock(lock)


def test_a_name_that_is_pinned_twice_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("typing_extensions==4.16.0\ntyping-extensions==4.15.0\n", encoding="utf-8")
    with pytest.raises(LockError, match="pinned twice"):
        read_lock(lock)


def test_a_changed_lock_has_another_digest(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("six==1.16.0\n", encoding="utf-8")
    before = digest(["python", lock])
    lock.write_text("six==1.17.0\n", encoding="utf-8")
    assert digest(["python", lock]) != before
