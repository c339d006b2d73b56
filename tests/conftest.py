"""What all tests share: calm settings for shared cores, the bundled checkpoint, and a random one with its tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("DSV4_TEST_GPU") != "1":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined: before anything imports Triton
settings.register_profile("shared-cores", deadline=None)  # wall time says nothing while others compute
settings.load_profile("shared-cores")

ROOT = Path(__file__).resolve().parents[1]
MAKE_TOKENIZER = ROOT / "build" / "tokenizer" / "make_tokenizer.py"


NANO = ROOT / "build" / "nano" / "checkpoints"


@pytest.fixture(scope="session")
def nano_checkpoint() -> Path:
    """The default checkpoint: the small trained model in the official layout."""
    return NANO / "official"


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer of the random checkpoint."""
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    command = [sys.executable, str(MAKE_TOKENIZER), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return out


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint: a real V4 shape in small, with Flash's pattern of layers, official layout."""
    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    command = [sys.executable, str(ROOT / "build" / "random_checkpoint.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder
