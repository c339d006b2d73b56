"""What an operator may decide about a gateway."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4_backend.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Addresses, names and limits.

    Units: *_s in seconds, *_bytes in bytes.
    Rule:  the first of model_names is the one that is listed; "*" among them accepts any name. facts are JSON answers
           by path that go before the gateway's own, such as those of NIM's container. key_digests are SHA-256 of the
           API keys; none means that no key is asked for. A client that lets max_unsent_events pile up pauses its
           stream, and is ended after stall_timeout_s of that.
    """

    checkpoint: Path
    triton_url: str = "127.0.0.1:8001"
    triton_metrics_url: str = ""
    model_names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    key_digests: tuple[bytes, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024 * 1024
    max_requests: int = 2048
    max_choices: int = 16
    max_prompts: int = 256
    request_timeout_s: float = 3600.0
    stall_timeout_s: float = 30.0
    keep_alive_s: float = 10.0
    max_unsent_events: int = 512
    max_stored_responses: int = 1024
    max_stored_bytes: int = 256 * 1024 * 1024

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.model_names[0] if self.model_names else self.checkpoint.name


def digest(key: str) -> bytes:
    """Return what is kept of an API key."""
    return hashlib.sha256(key.encode("utf-8")).digest()


def read_facts(path: Path) -> dict[str, Any]:
    """Return the JSON answers of a file by path, as {"/v1/manifest": …}. Raises: ConfigError if it is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file of facts {path} cannot be read: {error}. Name a file of JSON.") from error
    if not isinstance(found, dict) or not all(name.startswith("/") for name in found):
        raise ConfigError(f'the file of facts {path} must hold {{"/path": answer, …}}. Begin every name with /.')
    return found


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the digests of the keys in a file: one a line, empty lines and lines that begin with # are left out.

    Raises: ConfigError if the file cannot be read or holds no key, which would leave the gateway open.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}. Name a readable text file.") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"the key file {path} holds 0 keys but needs at least 1. Write one key per line.")
    return tuple(digest(key) for key in keys)
