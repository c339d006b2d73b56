"""The kernel tests once more on a library built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
TESTED = (
    "tests/kernels/test_attention.py",
    "tests/kernels/test_cache_rows.py",
    "tests/kernels/test_fold.py",
    "tests/kernels/test_hyper.py",
    "tests/kernels/test_index.py",
    "tests/kernels/test_invariance.py",
    "tests/kernels/test_linear.py",
    "tests/kernels/test_moe.py",
    "tests/kernels/test_packed.py",
    "tests/kernels/test_round_trip.py",
    "tests/kernels/test_route.py",
    "tests/kernels/test_rowwise.py",
    "tests/kernels/test_sample.py",
    "tests/kernels/test_sublayers.py",
    "tests/kernels/test_w4a8.py",
    "tests/model/test_step_inputs.py",
    "tests/model/test_whole_layers.py",
)
RUN = """
import sys
from dsv4_kernels import build
build.FLAGS += tuple(sys.argv[1].split())
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def preload(compiler: str) -> str:
    """The sanitizers' runtimes, which must be there before Python's allocator."""
    names = ("libasan.so", "libubsan.so")
    return ":".join(
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    )


def run_sanitised(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process whose library is sanitised."""
    compiler = shutil.which("g++")
    assert compiler is not None
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "LD_PRELOAD": preload(compiler)}
    return subprocess.run(
        [sys.executable, "-c", RUN, " ".join(FLAGS), "-x", "-s", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | options,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )


@pytest.mark.slow
def test_the_kernels_read_and_write_inside_their_tensors() -> None:
    done = run_sanitised(*TESTED)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_a_read_behind_a_tensor_is_found(tmp_path: Path) -> None:
    file = tmp_path / "test_wrong.py"
    file.write_text(
        "import torch\n"
        "from dsv4_kernels.dispatch import bind\n"
        "def test_wrong():\n"
        "    x = torch.ones(64)\n"
        "    library = bind('cpu').linear.__self__.library\n"
        "    library.dsv4_rms_norm(x.data_ptr(), None, x.data_ptr(), 1, 1 << 20, 1e-6, 1)\n",
        "utf-8",
    )
    done = run_sanitised(str(file))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stdout + done.stderr
