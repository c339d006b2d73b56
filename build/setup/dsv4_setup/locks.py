"""Lock files: one exact `name==version` a line, the whole closure, one file per target."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([A-Za-z0-9_.!-]+)$")
TARGETS = ("cpu", "nvidia-image", "gpu")


class LockError(Exception):
    """A lock file cannot be used."""


def read_lock(path: Path) -> dict[str, str]:
    """Return name → version, in the order of the file.

    Raises: LockError listing every line that is not an exact pin, and every name that is pinned twice.
    """
    pins: dict[str, str] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = PIN.match(text)
        if not match:
            problems.append(f"line {number}: {text!r} is not an exact pin (name==version)")
        elif normal_name(match.group(1)) in pins:
            problems.append(f"line {number}: {match.group(1)} is pinned twice")
        else:
            pins[normal_name(match.group(1))] = match.group(2)
    if problems:
        raise LockError(f"{path}: " + "; ".join(problems))
    return pins


def normal_name(name: str) -> str:
    """Return a package name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(pins: dict[str, str]) -> list[str]:
    """Return the pins as pip reads them."""
    return [f"{name}=={version}" for name, version in pins.items()]


def digest(parts: Iterable[str | Path]) -> str:
    """Return one hash over texts and the contents of files; a missing file counts as empty."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part.read_bytes() if part.is_file() else b""
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()
