"""Where models come from, behind one small interface: fsspec, with huggingface_hub's file system for hf://."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub import HfFileSystem

from dsv4_nim.cache import BLOCK
from dsv4_nim.errors import DownloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a model. sha256 is empty where the place does not tell it."""

    name: str
    path: str
    num_bytes: int
    sha256: str = ""


class Remote:
    """A folder on Hugging Face, in a bucket, or on a disk."""

    def __init__(self, uri: str) -> None:
        """Find the file system. Raises: DownloadError for what cannot be reached from here."""
        scheme, _, rest = uri.partition("://")
        if scheme == "ngc":
            raise DownloadError(
                f"{uri}: NGC's registry has no open client. Fetch it with NVIDIA's `ngc`, then name the folder."
            )
        self._uri = uri
        self._path = (rest or scheme).removeprefix("file://").rstrip("/")
        self._files = _file_system(scheme if rest else "file")

    def files(self) -> list[RemoteFile]:
        """Return every file, the largest last, so that a wrong config is seen early.

        Raises: DownloadError when the place does not answer or holds nothing.
        """
        try:
            found: dict[str, dict[str, Any]] = self._files.find(self._path, detail=True)
        except Exception as error:  # every file system has errors of its own
            raise DownloadError(f"{self._uri} cannot be listed: {_told(error)}") from error
        base = self._path if self._files.isdir(self._path) else os.path.dirname(self._path)
        root = str(self._files._strip_protocol(base)).rstrip("/") + "/"
        files = [_remote_file(row, root) for row in found.values() if row["type"] == "file"]
        if not files:
            raise DownloadError(f"{self._uri} holds no files. Check the name, and that the key may read it.")
        return sorted((file for file in files if not file.name.startswith(".")), key=lambda file: file.num_bytes)

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` on. Raises: DownloadError when the place stops answering."""
        try:
            with self._files.open(file.path, "rb", block_size=BLOCK) as source:
                source.seek(start)
                while block := source.read(BLOCK):
                    yield block
        except Exception as error:  # every file system has errors of its own
            raise DownloadError(f"{self._uri}/{file.name} cannot be read: {_told(error)}") from error


def _file_system(scheme: str) -> Any:
    """Return a file system of our own: a shared one would remember what it listed before."""
    if scheme == "hf":
        endpoint = os.environ.get("HF_ENDPOINT") or None
        token = os.environ.get("HF_TOKEN") or None
        return HfFileSystem(endpoint=endpoint, token=token, skip_instance_cache=True)
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme == "s3" and "AWS_ENDPOINT_URL" in os.environ:
        options["endpoint_url"] = os.environ["AWS_ENDPOINT_URL"]
    try:
        return fsspec.filesystem("gs" if scheme == "gcs" else scheme, **options)
    except ImportError as error:
        raise DownloadError(
            f"{scheme}:// needs a package that is not installed: {error}. pip install dsv4-triton[nim]."
        ) from error


def _remote_file(row: dict[str, Any], root: str) -> RemoteFile:
    path = str(row["name"])
    lfs = row.get("lfs") or {}
    return RemoteFile(
        name=path.removeprefix(root), path=path, num_bytes=int(row["size"]), sha256=str(lfs.get("sha256", ""))
    )


def _told(error: Exception) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return f"{first} Check the name, the network and the key (HF_TOKEN, AWS_*, GOOGLE_APPLICATION_CREDENTIALS)."


def local_folder(path: Path) -> Remote:
    """Return a folder on a disk as a place to copy from."""
    return Remote(f"file://{path.resolve()}")
