"""The compiled library of the trainer: built once per machine and source, loaded with the type of every function."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_long, c_void_p
from pathlib import Path

from dsv4_kernels.build import COMPILERS, cpu_features
from torch import Tensor

SOURCE = Path(__file__).parent / "kernels.cpp"
# Contraction and 512-bit registers: training needs speed, not the batch invariance of the runtime's kernels.
FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fopenmp-simd",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)
# One letter per argument: p pointer, l long, f float.
SIGNATURES = {
    "nano_hyper_maps": "ppp ppp lfl",
    "nano_hyper_maps_backward": "ppp ppp p lfl",
    "nano_mean_square": "pp ll",
    "nano_collapse": "ppp ll",
    "nano_collapse_dots": "ppp ll",
    "nano_collapse_add": "ppppp ll",
    "nano_mix": "ppppp ll",
    "nano_mix_backward": "ppppp pppp ll",
    "nano_norm_rotate": "pppp pp llllf",
    "nano_norm_rotate_backward": "pppppp ppp llll",
    "nano_swiglu": "ppp llf",
    "nano_swiglu_backward": "ppp ppp llf",
    "nano_masked_softmax": "pppp lll",
    "nano_softmax_backward": "ppppp lll",
}
TYPES = {"p": c_void_p, "l": c_long, "f": c_float}


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library. Raises: RuntimeError if it cannot be compiled."""
    loaded = ctypes.CDLL(str(_built()))
    for name, letters in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [TYPES[letter] for letter in letters.replace(" ", "")]
        function.restype = None
    return loaded


def call(name: str, *arguments: Tensor | float | int | None) -> None:
    """Call a function on contiguous float32 tensors (None is a null pointer) and numbers."""
    values = [item.data_ptr() if isinstance(item, Tensor) else item for item in arguments]
    getattr(library(), name)(*values)


def _built() -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + cpu_features().encode()).hexdigest()[:16]
    target = Path.home() / ".cache" / "dsv4" / "nano" / "kernels" / f"nano_{key}.so"
    if target.exists():
        return target
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError(f"no C++ compiler ({', '.join(COMPILERS)}) is on PATH. Install one: apt install g++.")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    told = subprocess.run([compiler, *FLAGS, "-o", partial, str(SOURCE)], capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(f"{compiler} exited with {told.returncode}:\n{told.stderr.strip()}")
    os.replace(partial, target)
    return target
