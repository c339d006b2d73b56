"""Compile the C++ twins into a shared library for a level of instructions; a process takes the best that its CPU has.

    python -m dsv4_kernels.build [FOLDER]          the library of this machine
    python -m dsv4_kernels.build --all [FOLDER]    that of every level, for an image that runs on many machines

The file name holds the level, a hash of sources and flags, and one of the compiler, so a change of any of them builds
anew, and an image without a compiler still finds what was built for it. What a level computes is the same to the bit:
lanes.h fixes lanes and order, and nothing is contracted.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dsv4_kernels.errors import BuildError

SOURCES = Path(__file__).parent / "cpu"
COMPILERS = ("g++", "c++")
ALL = "--all"
# No contraction: a fused multiply-add stands only where the source says so, which keeps results batch-invariant.
FLAGS = (
    "-O3",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One set of instructions: the compiler's flags, and the flags of /proc/cpuinfo that a CPU must have."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


_V3 = frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe".split())
_V4 = _V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni".split())
# The best first. They are named, not taken from the machine, so that an image has the same bytes wherever it is built.
LEVELS = (
    Level(
        name="x86-64-v4-bf16",
        flags=("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"),
        needs=_V4 | {"avx512_bf16", "avx512vbmi"},
    ),
    Level(name="x86-64-v4", flags=("-march=x86-64-v4", "-mavx512vnni"), needs=_V4),
    Level(name="x86-64-v3", flags=("-march=x86-64-v3",), needs=_V3),
)
NATIVE = Level(name="native", flags=("-march=native",))  # an older CPU, or one of another kind


def default_cache() -> Path:
    """Where libraries are kept unless the caller names a folder."""
    return Path.home() / ".cache" / "dsv4" / "kernels"


def build(cache: Path | None = None, compilers: tuple[str, ...] = COMPILERS) -> Path:
    """The library of the best level that this machine has, compiled if it is not there yet.

    Rule:   written under a temporary name and renamed, so that concurrent builds are safe and a killed one leaves no
            broken library behind. Without a compiler a lower level that is there is taken too.
    Raises: BuildError naming the compiler, the command and the fix.
    """
    folder = default_cache() if cache is None else cache
    compiler = _compiler(compilers)
    levels = levels_of(cpu_flags())
    return _built_earlier(folder, levels, compilers) if compiler is None else _build_level(levels[0], folder, compiler)


def build_all(cache: Path | None = None, compilers: tuple[str, ...] = COMPILERS) -> list[Path]:
    """The library of every level of this architecture, whichever of them this machine has.

    Raises: BuildError as build() does, and without a compiler.
    """
    folder = default_cache() if cache is None else cache
    compiler = _compiler(compilers)
    if compiler is None:
        raise BuildError(f"no C++ compiler ({' or '.join(compilers)}) is on PATH. Install one (apt install g++).")
    levels = LEVELS if platform.machine() == "x86_64" else (NATIVE,)
    return [_build_level(level, folder, compiler) for level in levels]


def levels_of(flags: frozenset[str]) -> list[Level]:
    """The levels that a CPU with these flags can run, the best first; the last one is always `native`."""
    return [*(level for level in LEVELS if level.needs <= flags), NATIVE]


def cpu_flags() -> frozenset[str]:
    """The instruction set flags of this CPU; none where the system does not tell them."""
    lines = [line for line in cpu_features().splitlines() if line.startswith("flags")]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


def cpu_features() -> str:
    """What a native library was tuned for: architecture, model and instruction set flags, as far as told."""
    wanted = ("flags", "Features", "model name", "CPU part")
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    told = sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join([platform.machine(), *told])


def _build_level(level: Level, folder: Path, compiler: str) -> Path:
    library = folder / f"{_stem(level)}_{_compiler_key(compiler)}.so"
    if not library.exists():
        _compile(compiler, level, library)
    return library


def _stem(level: Level) -> str:
    """The beginning of a library's file name, which follows from the level, the flags and the sources."""
    digest = hashlib.sha256((cpu_features() if level is NATIVE else platform.machine()).encode())
    digest.update(" ".join([*level.flags, *FLAGS]).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return f"dsv4_{level.name}_{digest.hexdigest()[:16]}"


def _compiler(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _compiler_key(compiler: str) -> str:
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return hashlib.sha256(told.stdout.encode()).hexdigest()[:8]


def _built_earlier(folder: Path, levels: list[Level], compilers: tuple[str, ...]) -> Path:
    stems = [_stem(level) for level in levels]
    found = [path for stem in stems for path in sorted(folder.glob(f"{stem}_*.so"))]
    if not found:
        raise BuildError(
            f"no C++ compiler ({' or '.join(compilers)}) is on PATH and {folder} holds no library that this machine "
            f"can run ({', '.join(stems)}). Install one (Debian, Ubuntu: apt install g++) and run "
            "python -m dsv4_kernels.build; an image needs a CPU with AVX2 and FMA."
        )
    return found[0]


def _compile(compiler: str, level: Level, library: Path) -> None:
    temporary = None
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=library.parent, suffix=".so.part")
        os.close(handle)
        command = [compiler, *level.flags, *FLAGS, "-o", temporary, *map(str, sorted(SOURCES.glob("*.cpp")))]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise BuildError(
                f"{compiler} exited with {told.returncode}.\ncommand: {' '.join(command)}\n{told.stderr.strip()}\n"
                "The sources need GCC 10 or newer. Install it (Debian, Ubuntu: apt install g++)."
            )
        os.replace(temporary, library)
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}. Name a writable cache folder.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Build and say where the libraries are."""
    folder = next((Path(word) for word in arguments if word != ALL), None)
    libraries = build_all(folder) if ALL in arguments else [build(folder)]
    sys.stdout.write("".join(f"{library}\n" for library in libraries))


if __name__ == "__main__":
    main(sys.argv[1:])
