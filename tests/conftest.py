"""Fixtures that every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default random checkpoint: a real V4 shape in small, official layout."""
    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    command = [sys.executable, str(ROOT / "build" / "random_checkpoint.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder
