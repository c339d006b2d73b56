"""Both tables of operators, random numbers seeded by the test's name, and bitwise equality."""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.ops import OpTable

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Without a GPU, tests of a GPU are no success."""
    if os.environ.get("DSV4_TEST_GPU") == "1" and not torch.cuda.is_available():
        pytest.exit("torch sees no GPU: make test-gpu needs one.", returncode=2)


@pytest.fixture(scope="session", params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> OpTable:
    return bind(request.param)


@pytest.fixture(scope="session")
def cpu() -> OpTable:
    return bind("cpu")


@pytest.fixture(scope="session")
def reference() -> OpTable:
    return bind("reference")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.originalname.encode()))
