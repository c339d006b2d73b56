"""pip, watched: its progress is shown, and a CUDA build of torch is stopped before it is downloaded."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HEARTBEAT_S = 10.0
TORCH_FILE = re.compile(
    r"\b(?:Downloading|Using cached|Processing)\s+\S*?(torch-[\w.+%!-]+\.whl)(?:\.metadata)?\s*(\([^)]*\))?"
)
STARTED = re.compile(r"^\s*(?:Collecting|Obtaining dependency information for|Requirement already satisfied:)\s+(\S+)")


class PackageError(Exception):
    """pip failed, or was about to download what must not be."""


class CudaBuildError(PackageError):
    """pip offers no CPU build of torch; nothing was downloaded."""


def is_cuda_torch(line: str) -> str:
    """Return "file (size)" when this line of pip names a torch that is not the CPU build, else an empty string."""
    match = TORCH_FILE.search(line)
    if not match or "+cpu" in match.group(1).replace("%2B", "+") or "aarch64" in match.group(1):
        return ""
    return f"{match.group(1)} {match.group(2) or ''}".strip()


def install(
    python: Path, arguments: Sequence[str], *, num_packages: int, allow_cuda: bool, say: Callable[[str], None]
) -> None:
    """Run `pip install` and show how far it is; num_packages 0 means unknown.

    Raises: PackageError with pip's last lines; CudaBuildError before a CUDA build is downloaded where none is allowed.
    """
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    log: list[str] = []
    try:
        _follow(lines, log, num_packages, allow_cuda, say)
    except BaseException:
        process.terminate()
        raise
    finally:
        code = process.wait()
    if code:
        raise PackageError("pip failed:\n" + "\n".join(log[-15:]) + "\nRun the same command again to resume.")


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _follow(
    lines: queue.Queue[str | None], log: list[str], num_packages: int, allow_cuda: bool, say: Callable[[str], None]
) -> None:
    seen: set[str] = set()
    phase, since = "waiting for the package index", time.monotonic()
    while True:
        try:
            line = lines.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            say(f"      … {phase} ({time.monotonic() - since:.0f} s)")
            continue
        if line is None:
            return
        log.append(line)
        cuda = "" if allow_cuda else is_cuda_torch(line)
        if cuda:
            raise CudaBuildError(_no_cpu_torch(cuda))
        started = STARTED.match(line)
        if started and started.group(1) not in seen:
            seen.add(started.group(1))
            phase, since = f"fetching {started.group(1)}", time.monotonic()
            total = f"/{num_packages}" if num_packages else ""
            say(f"      {len(seen)}{total} {started.group(1)}")
        elif line.startswith("Installing collected packages"):
            phase, since = "unpacking", time.monotonic()
            say(f"      unpacking {num_packages or len(seen)}")


def _no_cpu_torch(offered: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"pip offers only {offered}, a CUDA build that brings several GB with it, and no CPU build of torch for Python"
        f" {version}. Give pip a source of CPU builds (PIP_FIND_LINKS=<folder of wheels> or"
        " PIP_EXTRA_INDEX_URL=<index>), use another Python (PYTHON=python3.11), or accept the CUDA"
        " build with TORCH=cuda."
    )
