"""Which kept blocks and snapshots stand on disk, where they outlive the server. No torch: the ranks read and write."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsv4_backend.config import ServingConfig
from dsv4_backend.kv.layout import KINDS

FORMAT_VERSION = 1  # to be raised when the meaning of stored bytes changes


def cache_folder(config: ServingConfig, rank: int) -> Path | None:
    """Return where a rank keeps its part of the cache on disk; None where the settings name no folder.

    Rule: what one checkpoint computed under some settings is never found by another: the name is a hash of the
          checkpoint's files (name, size, time of change) and of every setting that changes stored bytes.
    """
    if not config.disk_cache:
        return None
    files = sorted(item for item in Path(config.checkpoint).iterdir() if item.is_file())
    identity = [f"{item.name} {item.stat().st_size} {item.stat().st_mtime_ns}" for item in files]
    drafts = f"{config.drafter.value if config.drafter.is_model else ''} {config.max_drafts}"
    settings = [config.numerics.value, config.cache_format.value, drafts, str(config.num_ranks)]
    text = "\n".join([str(FORMAT_VERSION), *settings, *identity])
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Path(config.disk_cache) / name / f"rank{rank}"


def file_name(kind: str, key: bytes) -> str:
    """Return the name of the file that holds a place."""
    return f"{key.hex()}.{kind}"


class DiskListing:
    """Keys of what is on disk, by kind. A file that is gone meanwhile, or damaged, is found out when it is read."""

    def __init__(self, folder: Path | None) -> None:
        self.is_on = folder is not None
        self._names: set[str] = set()
        if folder is not None and folder.is_dir():
            self._names = {item.name for item in folder.iterdir() if item.suffix[1:] in KINDS}

    def has(self, kind: str, key: bytes) -> bool:
        """Whether a place is on disk."""
        return file_name(kind, key) in self._names

    def add(self, kind: str, key: bytes) -> None:
        """A place is being written."""
        self._names.add(file_name(kind, key))

    def remove(self, key: bytes) -> None:
        """Nothing under this key can be used."""
        self._names -= {file_name(kind, key) for kind in KINDS}
