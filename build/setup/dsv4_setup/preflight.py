"""What this machine must have. `inspect` looks, `findings` judges: every lack at once, each with its fix."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_ROOT = Path("/opt/tritonserver")
PYTHONS = ((3, 11), (3, 12))
MIN_GLIBC = (2, 35)  # of the nvidia-pytriton wheel
MIN_SHM_BYTES = 64 << 20
MIN_DISK_BYTES = 4 << 30
COMPILERS = ("g++", "c++", "clang++")


@dataclass(frozen=True)
class Machine:
    """What was found. Units: *_bytes; None where a thing is not there.

    Rule: has_server means NVIDIA's image: its own tritonserver is used, whatever the wheel would need.
    """

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int]
    has_venv: bool
    libpython_dir: Path | None
    compiler: str | None
    busy_ports: tuple[int, ...]
    shm_free_bytes: int | None
    is_shm_writable: bool
    is_tmp_writable: bool
    is_tmp_executable: bool
    disk_free_bytes: int
    has_server: bool = False


@dataclass(frozen=True)
class Finding:
    """One lack, what mends it, and whether anything can start without it."""

    what: str
    fix: str
    is_fatal: bool = True


def findings(machine: Machine) -> list[Finding]:
    """Return every lack of this machine; empty when all is well."""
    return [*_python_findings(machine), *_system_findings(machine), *_run_findings(machine)]


def _python_findings(machine: Machine) -> list[Finding]:
    found, version = [], ".".join(map(str, machine.python))
    if machine.python not in PYTHONS:
        fix = "Install python3.11 or python3.12 and name it: `make demo PYTHON=python3.11`."
        found.append(Finding(f"Python is {version} but must be 3.11 or 3.12.", fix))
    if not machine.has_venv:
        found.append(Finding("Python's venv module cannot make environments.", f"apt-get install python{version}-venv"))
    if machine.libpython_dir is None:
        what = f"libpython{version}.so.1.0 is not there; Triton's Python stub needs it."
        found.append(Finding(what, f"apt-get install libpython{version} (pyenv: rebuild with --enable-shared)"))
    return found


def _system_findings(machine: Machine) -> list[Finding]:
    found = []
    if machine.machine != "x86_64" and not machine.has_server:
        what = f"the processor is {machine.machine}, but tritonserver is packed for x86_64 on PyPI."
        found.append(Finding(what, "Use NVIDIA's Triton image for this processor."))
    if machine.glibc < MIN_GLIBC and not machine.has_server:
        have = ".".join(map(str, machine.glibc))
        found.append(Finding(f"glibc is {have} but must be at least 2.35.", "Use Debian 12, Ubuntu 22.04 or newer."))
    if machine.compiler is None:
        found.append(Finding("there is no C++ compiler (g++, c++ or clang++).", "apt-get install g++"))
    if machine.disk_free_bytes < MIN_DISK_BYTES:
        what = f"{machine.disk_free_bytes >> 20} MiB of disk are free here but {MIN_DISK_BYTES >> 20} are needed."
        found.append(Finding(what, "Free some, or clone onto a larger disk."))
    return found


def _run_findings(machine: Machine) -> list[Finding]:
    found = []
    if machine.shm_free_bytes is None or not machine.is_shm_writable:
        fix = "mount -t tmpfs -o size=1g tmpfs /dev/shm (container: --shm-size 1g)"
        found.append(Finding("/dev/shm cannot be written; Triton's Python models talk through it.", fix))
    elif machine.shm_free_bytes < MIN_SHM_BYTES:
        what = f"/dev/shm has {machine.shm_free_bytes >> 20} MiB free but {MIN_SHM_BYTES >> 20} are needed."
        found.append(Finding(what, "mount -o remount,size=1g /dev/shm (container: --shm-size 1g), or clear it."))
    if not machine.is_tmp_writable:
        fix = "Make it writable (chmod 1777 /tmp), or set TMPDIR to a folder that is."
        found.append(Finding(f"{tempfile.gettempdir()} cannot be written.", fix))
    elif not machine.is_tmp_executable:
        fix = "Serving works; if a build fails, set TMPDIR to a folder that is mounted without noexec."
        found.append(Finding(f"{tempfile.gettempdir()} is mounted noexec.", fix, is_fatal=False))
    for port in machine.busy_ports:
        fix = "Stop what listens there, or choose other ports (HTTP_PORT=, GRPC_PORT=, METRICS_PORT=; 0 = any)."
        found.append(Finding(f"port {port} is in use.", fix))
    return found


def inspect(root: Path, *, ports: Sequence[int] = (), host: str = "127.0.0.1") -> Machine:
    """Look at this machine. Rule: `ports` are those that are about to be opened; 0 is never busy."""
    shm = Path("/dev/shm")
    temporary = Path(tempfile.gettempdir())
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor),
        machine=platform.machine(),
        glibc=_glibc(),
        has_venv=all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
        libpython_dir=libpython_dir(),
        compiler=find_compiler(),
        busy_ports=tuple(port for port in ports if port and is_busy(port, host)),
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        is_shm_writable=is_writable(shm),
        is_tmp_writable=is_writable(temporary),
        is_tmp_executable=not is_mounted_noexec(temporary),
        disk_free_bytes=shutil.disk_usage(root).free,
        has_server=(IMAGE_ROOT / "bin" / "tritonserver").is_file(),
    )


def find_compiler() -> str | None:
    """Return the C++ compiler that the kernels are built with."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def libpython_dir(places: Sequence[Path] | None = None) -> Path | None:
    """Return the folder with the shared library of the running Python."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for place in libpython_places() if places is None else places:
        if (place / name).is_file():
            return place
    return None


def libpython_places() -> list[Path]:
    """Where a shared libpython may lie: beside the interpreter, then the distribution's folders."""
    architecture = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    configured = sysconfig.get_config_var("LIBDIR")
    first = [Path(configured)] if configured else []
    return [*first, Path(sys.base_prefix, "lib"), Path("/usr/lib", architecture), Path("/lib", architecture)]


def is_busy(port: int, host: str) -> bool:
    """Tell whether somebody listens at this port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def is_writable(folder: Path) -> bool:
    """Tell whether a file can be made in this folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_mounted_noexec(folder: Path) -> bool:
    """Tell whether programs in this folder cannot be run."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except OSError:
        return False


def _glibc() -> tuple[int, int]:
    numbers = platform.libc_ver()[1].split(".")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)
