"""Virtual environments of the load tools, under build/cache/: they need packages that the project must not have."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / "cache"
# perf_analyzer asks for these names; the wheel that carries them put a hash into theirs.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


class LoadToolError(Exception):
    """A load tool cannot be set up or run."""


def ensure(name: str) -> Path:
    """Return the environment `name`, made from `name`.txt unless it is there and up to date.

    Raises: LoadToolError when pip fails.
    """
    lock = HERE / f"{name}.txt"
    stamp = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    root = CACHE / name
    marker = root / "stamp"
    if marker.is_file() and marker.read_text() == stamp:
        return root
    sys.stderr.write(f"setting up {name} in {root.relative_to(HERE.parents[1])} (once)\n")
    _call([sys.executable, "-m", "venv", "--clear", str(root)])
    _call([str(root / "bin" / "pip"), "install", "--quiet", "--no-deps", "--requirement", str(lock)])
    marker.write_text(stamp)
    return root


def perf_analyzer() -> tuple[Path, Path]:
    """Return the folder of the perf_analyzer binary and the folder of the libraries that it needs."""
    root = ensure("perf-analyzer")
    links = root / "links"
    links.mkdir(exist_ok=True)
    for wanted, pattern in LIBRARIES.items():
        found = sorted(root.glob(f"lib/python3.*/site-packages/nvidia_pytriton.libs/{pattern}"))
        if not found:
            raise LoadToolError(f"{pattern} is not in the nvidia-pytriton wheel that perf-analyzer.txt names.")
        link = links / wanted
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])
    return root / "bin", links


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadToolError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
