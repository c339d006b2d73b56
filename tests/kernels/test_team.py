"""The library's own threads (cpu/team.h): several callers, more threads than cores, and a child of fork()."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from dsv4_kernels.build import SOURCES
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import LinearWeight
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
FORKING = """
import os, torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.prepared import LinearWeight
torch.set_num_threads(2)
ops, x, w = bind("cpu"), torch.ones(4, 512), LinearWeight(dense=torch.ones(512, 512))
before = ops.linear(x, w)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(ops.linear(x, w), before) else 3)
assert torch.equal(ops.linear(x, w), before)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def factors(rng: np.random.Generator) -> tuple[Tensor, LinearWeight]:
    """Large enough for a team of eight."""
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 640), (600, 640)))
    return torch.from_numpy(x), LinearWeight(dense=torch.from_numpy(w))


@pytest.mark.usefixtures("threads")
def test_more_threads_than_cores_give_the_same_bits(cpu: OpTable, rng: np.random.Generator):
    x, w = factors(rng)
    alone = cpu.linear(x, w)
    for count in (2, 3, 8, 5):
        torch.set_num_threads(count)
        assert torch.equal(cpu.linear(x, w), alone)


@pytest.mark.usefixtures("threads")
def test_callers_at_the_same_time_do_not_meet(cpu: OpTable, rng: np.random.Generator):
    cases = [factors(rng) for _ in range(4)]
    alone = [cpu.linear(*case) for case in cases]

    def repeat(number: int) -> bool:
        torch.set_num_threads(2 + number % 2)
        return all(torch.equal(cpu.linear(*cases[number]), alone[number]) for _ in range(100))

    with ThreadPoolExecutor(len(cases)) as pool:
        assert all(pool.map(repeat, range(len(cases)), timeout=120))


def test_a_child_of_fork_has_threads_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_team_has_no_data_races(tmp_path: Path):
    compiler, program = shutil.which("g++"), tmp_path / "team"
    assert compiler is not None
    sources = (Path(__file__).with_name("team_check.cpp"), SOURCES / "team.cpp")
    flags = ("-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{SOURCES}")
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True, capture_output=True, timeout=120)
    done = subprocess.run([program], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr[-4000:]
