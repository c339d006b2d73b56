"""Places of the cache as files: written by a thread of its own, checked when they are read.

A file is a magic number, a hash of kind, key and contents, and the contents. What does not match is removed: it is as
if it had never been there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from pathlib import Path

from dsv4_backend.kv.listing import file_name

MAGIC = b"DSV4KV01"
DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


class DiskStore:
    """One folder of files of at most max_bytes; the longest unused go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._pending: deque[tuple[str, bytes]] = deque()
        self._is_closed = False
        self._warned = False
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        self._num_bytes = sum(item.stat().st_size for item in folder.iterdir())
        self._thread = threading.Thread(target=self._write_all, name="dsv4-disk-cache")
        self._thread.start()

    def save(self, kind: str, key: bytes, contents: bytes) -> None:
        """Write a file soon."""
        with self._changed:
            self._pending.append((file_name(kind, key), contents))
            self._changed.notify_all()

    def load(self, kind: str, key: bytes, num_bytes: int) -> bytes | None:
        """Return the contents of a file; None where it is missing or not what was written."""
        name = file_name(kind, key)
        with self._changed:
            self._changed.wait_for(lambda: all(pending != name for pending, _ in self._pending))
        path = self._folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        head, contents = data[: len(MAGIC) + DIGEST_BYTES], data[len(MAGIC) + DIGEST_BYTES :]
        if head != _head(name, contents) or len(contents) != num_bytes:
            _log.warning("the cache file %s is damaged; it is removed, and its tokens are computed again", path)
            path.unlink(missing_ok=True)
            return None
        return contents

    def close(self) -> None:
        """Write what is pending, and stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._is_closed)
                if not self._pending:
                    return
                name, contents = self._pending[0]
            self._write(name, contents)
            with self._changed:
                self._pending.popleft()
                self._changed.notify_all()

    def _write(self, name: str, contents: bytes) -> None:
        part = self._folder / f"{name}.part"
        try:
            part.write_bytes(_head(name, contents) + contents)
            part.replace(self._folder / name)
            self._num_bytes += len(MAGIC) + DIGEST_BYTES + len(contents)
            if self._num_bytes > self._max_bytes:
                self._prune()
        except OSError as error:
            part.unlink(missing_ok=True)
            if not self._warned:
                self._warned = True
                _log.warning("the disk cache cannot be written (%s); what is missing is computed again", error)

    def _prune(self) -> None:
        """Remove the longest unused files until a tenth of the room is free."""
        files = sorted((item.stat().st_mtime_ns, item.stat().st_size, item) for item in self._folder.iterdir())
        self._num_bytes = sum(size for _, size, _ in files)
        for _, size, item in files:
            if self._num_bytes <= self._max_bytes * 0.9:
                return
            item.unlink(missing_ok=True)
            self._num_bytes -= size


def _head(name: str, contents: bytes) -> bytes:
    digest = hashlib.blake2b(contents, digest_size=DIGEST_BYTES, key=name.encode()[:64])
    return MAGIC + digest.digest()
