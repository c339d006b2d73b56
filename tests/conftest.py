"""What all tests share: calm settings for shared cores, and the small tokenizer."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("shared-cores", deadline=None)  # wall time says nothing while others compute
settings.load_profile("shared-cores")

MAKE_TOKENIZER = Path(__file__).parents[1] / "build" / "tokenizer" / "make_tokenizer.py"


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer of the default checkpoint."""
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(MAKE_TOKENIZER), str(out)])
        runpy.run_path(str(MAKE_TOKENIZER), run_name="__main__")
    return out
