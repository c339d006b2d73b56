"""Set-up runs what is pending, stamps what is done, and resumes after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from dsv4_setup import steps
from dsv4_setup.packages import PackageError, install, is_cuda_torch
from dsv4_setup.steps import Checkout, Step, pending, run

PIP = """#!/bin/sh
printf '%s\\n' "$@" > {log}
{body}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with a lock and nothing else."""
    lock = tmp_path / "build" / "locks" / "cpu.txt"
    lock.parent.mkdir(parents=True)
    lock.write_text("torch==2.13.0\nsix==1.17.0\n", encoding="utf-8")
    return Checkout(tmp_path, "cpu")


def make_environment(checkout: Checkout) -> None:
    """An environment whose interpreter exists, and whose steps are all stamped."""
    checkout.python.parent.mkdir(parents=True, exist_ok=True)
    checkout.python.touch()
    checkout.stamps.mkdir(exist_ok=True)
    for step in steps.steps(checkout):
        (checkout.stamps / step.name).write_text(step.key, encoding="ascii")


def names(todo: list[Step]) -> list[str]:
    return [step.name for step in todo]


def test_a_fresh_checkout_has_every_step_before_it(checkout: Checkout) -> None:
    assert names(pending(checkout)) == ["environment", "torch", "packages", "stub", "project", "kernels"]


def test_results_that_are_gone_are_made_again(checkout: Checkout) -> None:
    make_environment(checkout)
    assert names(pending(checkout)) == ["stub"]


def test_a_changed_pin_installs_packages_but_not_torch(checkout: Checkout) -> None:
    make_environment(checkout)
    checkout.lock.write_text("torch==2.13.0\nsix==1.16.0\n", encoding="utf-8")
    assert "packages" in names(pending(checkout))
    assert "torch" not in names(pending(checkout))


def test_a_lost_environment_begins_from_the_start(checkout: Checkout) -> None:
    make_environment(checkout)
    checkout.python.unlink()
    assert names(pending(checkout))[:3] == ["environment", "torch", "packages"]


def test_an_interrupted_set_up_resumes_at_the_step_that_failed(checkout: Checkout) -> None:
    make_environment(checkout)
    (checkout.stamps / "torch").unlink()
    (checkout.stamps / "project").unlink()

    def fail(say: object) -> None:
        raise KeyboardInterrupt

    before = steps.steps(checkout)
    todo = [
        Step("torch", before[1].key, lambda: True, lambda say: None),
        Step("project", before[4].key, lambda: True, fail),
    ]
    with pytest.raises(KeyboardInterrupt):
        run(checkout, todo, lambda text: None)
    assert "torch" not in names(pending(checkout))
    assert "project" in names(pending(checkout))


@pytest.mark.parametrize(
    ("line", "is_cuda"),
    [
        ("  Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (526.6 MB)", True),
        ("  Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl.metadata (29 kB)", True),
        ("  Using cached torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (526.6 MB)", True),
        ("Processing /wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("  Downloading torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)", False),
        ("  Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_aarch64.whl (104.0 MB)", False),
        ("  Downloading torchvision-0.29.1-cp311-cp311-manylinux_2_28_x86_64.whl (8 MB)", False),
    ],
)
def test_a_cuda_build_of_torch_is_known_by_its_file(line: str, is_cuda: bool) -> None:
    assert bool(is_cuda_torch(line)) == is_cuda


def fake_python(folder: Path, body: str) -> Path:
    """An interpreter whose pip does what `body` says."""
    python = folder / "python"
    python.write_text(PIP.format(log=folder / "arguments", body=body), encoding="utf-8")
    python.chmod(0o755)
    return python


def test_a_cuda_build_is_stopped_before_its_download_ends(tmp_path: Path) -> None:
    wheel = "torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl"
    python = fake_python(tmp_path, f"echo '  Downloading {wheel} (526.6 MB)'; exec sleep 60")
    with pytest.raises(PackageError, match=r"526\.6 MB.*PYTHON=python3\.11"):
        install(python, ["torch==2.13.0"], num_packages=1, allow_cuda=False, say=lambda text: None)


def test_a_failing_pip_shows_its_last_lines(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo 'ERROR: no space left'; exit 1")
    with pytest.raises(PackageError, match="no space left"):
        install(python, ["six==1.17.0"], num_packages=1, allow_cuda=False, say=lambda text: None)


def test_progress_counts_each_package_once(tmp_path: Path) -> None:
    python = fake_python(
        tmp_path, "echo 'Collecting six==1.17.0'; echo 'Collecting six==1.17.0'; echo 'Collecting a==1'"
    )
    said: list[str] = []
    install(python, ["six==1.17.0", "a==1"], num_packages=2, allow_cuda=False, say=said.append)
    assert [line.strip() for line in said] == ["1/2 six==1.17.0", "2/2 a==1"]


CUDA_FIRST = (
    'case "$*" in *--no-deps*) echo "  Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (526.6 MB)"'
    "; exec sleep 60;; esac"
)


def _checkout_with(pip: str, folder: Path, torch: str) -> Checkout:
    checkout = Checkout(folder, "cpu", torch=torch)
    for file in (checkout.lock, checkout.python):
        file.parent.mkdir(parents=True)
    checkout.lock.write_text("torch==2.13.0\n", encoding="utf-8")
    fake_python(checkout.python.parent, pip)
    return checkout


def test_without_a_cpu_build_the_cuda_build_is_taken_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    steps._torch(_checkout_with(CUDA_FIRST, tmp_path, "auto"), said.append)
    assert "526.6 MB" in said[-1] and "going on with the CUDA build" in said[-1]


def test_torch_cpu_stops_where_there_is_no_cpu_build(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no CPU build"):
        steps._torch(_checkout_with(CUDA_FIRST, tmp_path, "cpu"), lambda text: None)
