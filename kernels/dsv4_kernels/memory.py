"""How this process takes its memory from the system.

Weights lie in huge pages, where it has them: a token reads all of them, and each small page is a walk. Pieces are cut
from large anonymous mappings one after the other, so that small matrices lie in huge pages as well.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

REGION_BYTES = 64 << 20
MALLOC_OPTIONS = {-3: 1 << 30, -1: (1 << 31) - 1}  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes
LINE_BYTES = 128  # where a piece begins: a multiple of a cache line and of every vector


class HugeMemory:
    """Hands out bytes. A mapping lives as long as one of the tensors cut from it."""

    def __init__(self, region_bytes: int = REGION_BYTES) -> None:
        self._region_bytes = region_bytes
        self._lock = Lock()
        self._region: mmap.mmap | None = None
        self._used = 0

    def bytes(self, *shape: int) -> Tensor:
        """Zeroed bytes of a shape, which take up memory only once they are written. Shapes: as given, uint8."""
        size = torch.Size(shape).numel()
        if not size:
            return torch.empty(shape, dtype=torch.uint8)
        with self._lock:
            if self._region is None or self._used + size > len(self._region):
                self._region, self._used = _mapped(max(size, self._region_bytes)), 0
            first, self._used = self._used, self._used + -(-size // LINE_BYTES) * LINE_BYTES
            return torch.frombuffer(self._region, dtype=torch.uint8, count=size, offset=first).view(shape)


def _mapped(size: int) -> mmap.mmap:
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
    if advice is not None:
        with suppress(OSError):  # a kernel without them
            region.madvise(advice)
    return region


WEIGHTS = HugeMemory()


def keep_freed_memory() -> None:
    """Keep what is freed for the next step: pages that are given back come again only after they were zeroed."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc
    if set_option is not None:
        for option, value in MALLOC_OPTIONS.items():
            set_option(option, value)
