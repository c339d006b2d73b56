"""Compile the C++ twins into one shared library, once per machine kind.

    python -m dsv4_kernels.build [FOLDER]

The file name holds a hash of the sources, flags and CPU features and one of the compiler, so a change of any of them
builds anew, and an image without a compiler still finds the library that was built for its machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dsv4_kernels.errors import BuildError

SOURCES = Path(__file__).parent / "cpu"
COMPILERS = ("g++", "c++")
# No contraction: a fused multiply-add stands only where the source says so, which keeps results batch-invariant.
FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)


def default_cache() -> Path:
    """Where libraries are kept unless the caller names a folder."""
    return Path.home() / ".cache" / "dsv4" / "kernels"


def build(cache: Path | None = None, compilers: tuple[str, ...] = COMPILERS) -> Path:
    """The library for this machine, compiled if it is not there yet.

    Rule:   written under a temporary name and renamed, so that concurrent builds are safe and a killed one leaves no
            broken library behind.
    Raises: BuildError naming the compiler, the command and the fix.
    """
    folder = default_cache() if cache is None else cache
    stem = f"dsv4_{_machine_key()}"
    compiler = next((path for name in compilers if (path := shutil.which(name))), None)
    if compiler is None:
        return _built_earlier(folder, stem, compilers)
    library = folder / f"{stem}_{_compiler_key(compiler)}.so"
    if not library.exists():
        _compile(compiler, library)
    return library


def cpu_features() -> str:
    """What the library was tuned for: architecture, model and instruction set flags, as far as the system tells."""
    wanted = ("flags", "Features", "model name", "CPU part")
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    told = sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join([platform.machine(), *told])


def _machine_key() -> str:
    digest = hashlib.sha256(cpu_features().encode())
    digest.update(" ".join(FLAGS).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler_key(compiler: str) -> str:
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return hashlib.sha256(told.stdout.encode()).hexdigest()[:8]


def _built_earlier(folder: Path, stem: str, compilers: tuple[str, ...]) -> Path:
    found = sorted(folder.glob(f"{stem}_*.so"))
    if not found:
        raise BuildError(
            f"no C++ compiler ({' or '.join(compilers)}) is on PATH and {folder} holds no library built for this "
            f"machine ({stem}). Install one (Debian, Ubuntu: apt install g++) and run python -m dsv4_kernels.build."
        )
    return found[0]


def _compile(compiler: str, library: Path) -> None:
    temporary = None
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=library.parent, suffix=".so.part")
        os.close(handle)
        command = [compiler, *FLAGS, "-o", temporary, *map(str, sorted(SOURCES.glob("*.cpp")))]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise BuildError(
                f"{compiler} exited with {told.returncode}.\ncommand: {' '.join(command)}\n{told.stderr.strip()}\n"
                "The sources need GCC 10 or newer with OpenMP. Install it (Debian, Ubuntu: apt install g++)."
            )
        os.replace(temporary, library)
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}. Name a writable cache folder.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Build and say where the library is."""
    sys.stdout.write(f"{build(Path(arguments[0]) if arguments else None)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
