"""Models on disk: one folder each under the cache, complete when its record names every file with size and checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv4_nim.errors import CacheError, DownloadError

RECORD = "nim-download.json"
BLOCK = 8 << 20
GB, MB = 10**9, 10**6
REMOTE_SCHEMES = ("hf", "s3", "gs", "gcs", "ngc")


def is_remote(uri: str) -> bool:
    """Tell whether a model has to be fetched. Raises: DownloadError for a scheme that is not known here."""
    scheme, colon, _ = uri.partition("://")
    if colon and scheme not in (*REMOTE_SCHEMES, "file"):
        raise DownloadError(f"{uri} has the scheme {scheme!r}. Use hf://, s3://, gs:// or a local folder.")
    return bool(colon) and scheme != "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a model in the cache."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache folder (NIM_CACHE_PATH)."""

    root: Path

    def folder(self, uri: str) -> Path:
        """Return where a model is or will be: readable, and different for every uri."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "--", uri).strip("-")
        return self.root / "models" / f"{readable}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"

    def is_complete(self, uri: str) -> bool:
        """Tell whether every file of a fetched model is there at its size."""
        folder = self.folder(uri)
        files = read_record(folder)
        return bool(files) and all(_size(folder / file.name) == file.num_bytes for file in files)

    def require_writable(self) -> None:
        """Raises: CacheError naming the folder, who we are and the fix."""
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()

    def require_room(self, num_bytes: int) -> None:
        """Raises: CacheError when the disk has less free than this."""
        free = shutil.disk_usage(self.root).free
        if num_bytes > free:
            raise CacheError(
                f"the cache {self.root} has {told_bytes(free)} free but {told_bytes(num_bytes)} are needed. Mount a"
                " larger volume at NIM_CACHE_PATH, or remove models from it."
            )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system says about writing into a CacheError with the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"the disk of the cache {folder} is full. What was fetched is kept: mount a larger volume at"
                " NIM_CACHE_PATH, or remove models from it, and start again; it goes on where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST):
            raise CacheError(
                f"the cache {folder} cannot be written by uid {os.geteuid()}, gid {os.getegid()}: {error.strerror}."
                f" Type `chown -R {os.geteuid()} {folder}` on its host, set the pod's fsGroup, or set NIM_CACHE_PATH."
            ) from error
        raise


def read_record(folder: Path) -> tuple[StoredFile, ...]:
    """Return what a complete download wrote; empty when there is none, or it cannot be read."""
    try:
        rows = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return tuple(StoredFile(**row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def write_record(folder: Path, uri: str, files: list[StoredFile]) -> None:
    """Write the record, last of all and at once: with it a model is complete."""
    rows = [{"name": file.name, "num_bytes": file.num_bytes, "sha256": file.sha256} for file in files]
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps({"uri": uri, "files": rows}, indent=1), encoding="utf-8")
    part.rename(folder / RECORD)


def verify(folder: Path) -> list[str]:
    """Return a sentence for every file that is no longer what was fetched."""
    problems = []
    for file in read_record(folder):
        size = _size(folder / file.name)
        if size != file.num_bytes:
            problems.append(f"{file.name} has {size} bytes but {file.num_bytes} were fetched")
        elif sha256_of(folder / file.name) != file.sha256:
            problems.append(f"{file.name} does not have the checksum that was fetched")
    return problems


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told_bytes(num_bytes: float) -> str:
    """Return a size as a person reads it."""
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB else f"{num_bytes / MB:.2f} MB"


def _size(path: Path) -> int:
    """Bytes of a file; -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
