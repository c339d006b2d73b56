"""Fetch a model into the cache: resumed where it stopped, checked file by file, with progress."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsv4_nim.cache import BLOCK, Cache, StoredFile, explained, read_record, told_bytes, verify, write_record
from dsv4_nim.errors import DownloadError
from dsv4_nim.remote import Remote, RemoteFile

SUMS = "SHA256SUMS"
TRIES = 4
PAUSE_S = 1.0
PROGRESS_S = 5.0


@dataclass(slots=True, kw_only=True)
class Progress:
    """Says how far it is, every few seconds and at the end of a file."""

    say: Callable[[str], None]
    total_bytes: int
    done_bytes: int = 0
    new_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def add(self, num_bytes: int, name: str) -> None:
        """Count bytes that came just now."""
        self.done_bytes += num_bytes
        self.new_bytes += num_bytes
        now = time.monotonic()
        if now - self.told >= PROGRESS_S:
            self.told = now
            rate = self.new_bytes / max(now - self.started, 1e-3)
            share = 100 * self.done_bytes / max(1, self.total_bytes)
            sizes = f"{told_bytes(self.done_bytes)} of {told_bytes(self.total_bytes)}"
            self.say(f"{share:5.1f} %  {sizes}  {rate / 1e6:.0f} MB/s  {name}")


def fetch(uri: str, cache: Cache, say: Callable[[str], None], *, pause_s: float = PAUSE_S) -> Path:
    """Return the folder of a model, fetched where it is not there yet.

    Rule:   a file is written under a name of its own and renamed when its checksum is right; the record comes last.
    Raises: CacheError (permission, room), DownloadError (cannot be read, or is not what was announced).
    """
    folder = cache.folder(uri)
    if cache.is_complete(uri):
        broken = verify(folder)
        if not broken:
            say(f"{uri} is in the cache: {folder}")
            return folder
        say(f"fetching again what changed in the cache: {'; '.join(broken)}")
    cache.require_writable()
    remote = Remote(uri)
    files = remote.files()
    there = {file.name: file for file in read_record(folder)}
    with explained(cache.root):
        folder.mkdir(parents=True, exist_ok=True)
        cache.require_room(sum(file.num_bytes - _have(folder, file) for file in files))
        progress = Progress(say=say, total_bytes=sum(file.num_bytes for file in files))
        sums = _announced(remote, files)
        stored = [_store(remote, file, folder, there, sums, progress, pause_s) for file in files]
        write_record(folder, uri, stored)
    say(f"{len(stored)} files, {told_bytes(progress.total_bytes)}, are in {folder}")
    return folder


def _have(folder: Path, file: RemoteFile) -> int:
    whole, part = folder / file.name, _part(folder, file)
    return next((path.stat().st_size for path in (whole, part) if path.is_file()), 0)


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.name}.part"


def _announced(remote: Remote, files: list[RemoteFile]) -> Mapping[str, str]:
    """Return name → checksum as the place tells it, or as a SHA256SUMS beside the files does."""
    sums = {file.name: file.sha256 for file in files if file.sha256}
    for file in files:
        if file.name == SUMS:
            text = b"".join(remote.read(file, 0)).decode()
            rows = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            sums |= {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2}
    return sums


def _store(
    remote: Remote, file: RemoteFile, folder: Path, there: Mapping[str, StoredFile], sums: Mapping[str, str],
    progress: Progress, pause_s: float,
) -> StoredFile:  # fmt: skip
    """Fetch one file; one that comes with a wrong checksum is tried once more from its start."""
    wanted = sums.get(file.name, "")
    kept = _kept(folder, file, there, wanted)
    if kept:
        progress.done_bytes += file.num_bytes
        return StoredFile(name=file.name, num_bytes=file.num_bytes, sha256=kept)
    got = ""
    for _ in range(2):
        got = _fetch_file(remote, file, folder, progress, pause_s)
        if not wanted or got == wanted:
            _part(folder, file).rename(folder / file.name)
            return StoredFile(name=file.name, num_bytes=file.num_bytes, sha256=got)
        _part(folder, file).unlink()
        progress.done_bytes -= file.num_bytes
    raise DownloadError(
        f"{file.name} came twice with the checksum {got[:16]}… but {wanted[:16]}… was announced. It was removed:"
        " try again, and if it stays so, the source itself is damaged."
    )


def _kept(folder: Path, file: RemoteFile, there: Mapping[str, StoredFile], wanted: str) -> str:
    """Return the checksum of a file that is there whole and right; empty otherwise."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.num_bytes:
        return ""
    with path.open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()
    recorded = there[file.name].sha256 if file.name in there else wanted
    return found if found == (wanted or recorded) else ""


def _fetch_file(remote: Remote, file: RemoteFile, folder: Path, progress: Progress, pause_s: float) -> str:
    """Append what is missing to the part and return its checksum."""
    part = _part(folder, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    total = hashlib.sha256()
    with part.open("a+b") as out:
        if out.tell() > file.num_bytes:
            out.truncate(0)
        out.seek(0)
        while block := out.read(BLOCK):
            total.update(block)
        progress.done_bytes += out.tell()
        for tried in range(TRIES):
            try:
                for block in remote.read(file, out.tell()):
                    out.write(block)
                    total.update(block)
                    progress.add(len(block), file.name)
                break
            except DownloadError:
                if tried == TRIES - 1:
                    raise
                time.sleep(pause_s * 2**tried)
        num_bytes = out.tell()
    if num_bytes != file.num_bytes:
        raise DownloadError(f"{file.name} ended after {num_bytes} of {file.num_bytes} bytes. Start again to go on.")
    return total.hexdigest()
