"""The run directory: a private copy of the model repository whose config.pbtxt files carry this run's settings."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from dsv4_backend.errors import ConfigError

STRING = r'"(?:[^"\\]|\\.)*"'


def write_run_directory(repository: Path, settings: Mapping[str, str], models: Iterable[str]) -> Path:
    """Copy `repository` into a new folder, put `settings` into the configs of `models`, and return the folder.

    Rule:   models that the repository does not hold are passed over; the copy is `<folder>/repository`.
    Raises: ConfigError when there is no repository.
    """
    if not repository.is_dir():
        raise ConfigError(f"the model repository {repository} is not a folder. Name one with --repository.")
    folder = Path(tempfile.mkdtemp(prefix="dsv4-run-"))
    copy = folder / "repository"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for model in models:
        config = copy / model / "config.pbtxt"
        if config.is_file():
            config.write_text(with_parameters(config.read_text(encoding="utf-8"), settings), encoding="utf-8")
    return folder


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
