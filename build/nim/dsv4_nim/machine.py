"""What this machine has: GPUs as nvidia-smi tells them, memory as the container's limit and the kernel tell it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
MIB = 1 << 20
# The longest first, for a B200 is also found in the name of a GB200.
PRODUCTS = (
    ("rtx pro 6000", "rtx-pro-6000"), ("gb200", "gb200"), ("gb300", "gb300"), ("b200", "b200"), ("b300", "b300"),
    ("gh200", ""), ("h200", "h200"), ("h100", "h100"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; `kind` is a device of `dsv4 plan`, empty for one that no profile is made for."""

    name: str
    kind: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What profiles are judged against. Units: *_bytes."""

    gpus: tuple[Gpu, ...] = ()
    cpu_memory_bytes: int = 0

    def describe(self) -> str:
        """Say what there is, as `8 x NVIDIA B200` or `no GPU`, with the memory."""
        kinds = {gpu.name: sum(other.name == gpu.name for other in self.gpus) for gpu in self.gpus}
        told = ", ".join(f"{count} x {name}" for name, count in kinds.items()) or "no GPU"
        return f"{told}, {self.cpu_memory_bytes / 1e9:.0f} GB of memory"


def detect(query: Sequence[str] = QUERY) -> Machine:
    """Look at this machine. A machine without nvidia-smi, or whose driver does not answer, has no GPU."""
    text = ""
    if shutil.which(query[0]):
        done = subprocess.run(list(query), capture_output=True, text=True, timeout=60, check=False)
        text = done.stdout if done.returncode == 0 else ""
    return Machine(gpus=parse_gpus(text), cpu_memory_bytes=memory_bytes())


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's lines: name, MiB in all, MiB in use. A line of another form (MIG) is left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            total, used = int(parts[1]) * MIB, int(parts[2]) * MIB
            found.append(Gpu(name=parts[0], kind=kind_of(parts[0]), memory_bytes=total, free_bytes=total - used))
    return tuple(found)


def kind_of(name: str) -> str:
    """Return the device of `dsv4 plan` that a product is; empty for others."""
    return next((kind for product, kind in PRODUCTS if product in name.lower()), "")


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory of this container: the machine's, or the cgroup's limit where that is lower."""
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    total = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 0)
    limits = [_limit(root / "sys/fs/cgroup/memory.max"), _limit(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([total, *[limit for limit in limits if limit]])


def _limit(path: Path) -> int:
    """A limit in bytes; 0 where there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
