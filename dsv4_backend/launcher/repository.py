"""The run directory: a private copy of the model repository whose config.pbtxt files carry this run's settings."""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from dsv4_backend.errors import ConfigError
from dsv4_backend.launcher.process import pids_with_argument

PREFIX = "dsv4-run-"
LOCK = "lock"
SHARED_MEMORY = Path("/dev/shm")

STRING = r'"(?:[^"\\]|\\.)*"'


class RunDirectory:
    """A new folder with `repository/`, the private copy, and a lock that lives as long as this process.

    Rule: a folder whose lock is free was left by a launcher that was killed; `remove_stale` takes it away.
    """

    def __init__(self, repository: Path, settings: Mapping[str, str], models: Iterable[str], shm_prefix: str) -> None:
        """Copy `repository` and put `settings` into the configs of those of `models` that it holds.

        Raises: ConfigError when there is no repository.
        """
        if not repository.is_dir():
            raise ConfigError(f"the model repository {repository} is not a folder. Name one with --repository.")
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = _lock_new(self.path, shm_prefix)
        shutil.copytree(repository, self.repository, ignore=shutil.ignore_patterns("__pycache__"))
        for model in models:
            config = self.repository / model / "config.pbtxt"
            if config.is_file():
                config.write_text(with_parameters(config.read_text(encoding="utf-8"), settings), encoding="utf-8")

    @property
    def repository(self) -> Path:
        """The private copy."""
        return self.path / "repository"

    def remove(self) -> None:
        """Delete the folder; harmless when it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_stale() -> None:
    """Remove run directories, and their shared memory, whose launchers and servers are dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open(encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shm_prefix = lock.read()
                if shm_prefix and not pids_with_argument(shm_prefix):
                    remove_shared_memory(shm_prefix)
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # its owner lives, or it is just being made or removed


def remove_shared_memory(shm_prefix: str) -> None:
    """Remove the regions of one server."""
    for region in SHARED_MEMORY.glob(f"*{shm_prefix}*"):
        region.unlink(missing_ok=True)


def _lock_new(folder: Path, shm_prefix: str) -> TextIO:
    """Take the lock before it can be seen, so that nobody else finds it free."""
    hidden = folder / f"{LOCK}.new"
    lock = hidden.open("w", encoding="ascii")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(shm_prefix)
    lock.flush()
    hidden.rename(folder / LOCK)
    return lock


def with_parameters(config: str, settings: Mapping[str, str]) -> str:
    """Return the text of a config.pbtxt with these string parameters: replaced where named, else added at the end."""
    for name, value in settings.items():
        config = _with_parameter(config, name, _quote(value))
    return config


def _with_parameter(config: str, name: str, quoted: str) -> str:
    entry = re.compile(r'(key\s*:\s*"' + re.escape(name) + r'"[\s,]*value\s*:?\s*\{\s*string_value\s*:\s*)' + STRING)
    if entry.search(config):
        return entry.sub(lambda match: match.group(1) + quoted, config)
    block = f'parameters {{ key: "{name}" value {{ string_value: {quoted} }} }}'
    return "\n".join([config.rstrip("\n"), block, ""])


def _quote(text: str) -> str:
    """A protobuf text-format string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
