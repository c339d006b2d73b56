"""Which lines of tritonserver's log a person needs to see."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LOGGED = re.compile(r'^([IWEF])\d{4} [\d:.]+ \d+ ([\w.+-]+):\d+\] "?(.*?)"?$')
_TABLE = re.compile(r"^\s*$|^[+|]")
# Said on every machine without a GPU, and harmless there.
_NO_GPU = (
    "pinned_memory_manager.cc",
    "cuda_memory_manager.cc",
    "CudaDriverHelper",
    "CUDA driver version",
    "DCGM",
    "NVML",
)
_OWN = re.compile(r"^dsv4 (INFO|WARNING|ERROR|CRITICAL) [\w.]+: (.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line. `severity` is I, W, E or F; lines that are not Triton's own count as I of source ""."""

    severity: str
    source: str
    message: str


def parse_line(text: str) -> LogLine:
    """Take a line of the log apart."""
    match = _LOGGED.match(text)
    if not match:
        return LogLine(severity="I", source="", message=text)
    return LogLine(severity=match.group(1), source=match.group(2), message=match.group(3).replace('\\"', '"'))


def is_decoration(text: str) -> bool:
    """Tell whether a line is empty or part of a table."""
    return _TABLE.match(text) is not None


def news(text: str) -> str:
    """Return what a line tells a person: words of our models, warnings, errors; empty for the rest."""
    if is_decoration(text) or text.startswith("Signal (") or any(word in text for word in _NO_GPU):
        return ""
    own = _OWN.match(text)
    if own:
        return own.group(2) if own.group(1) == "INFO" else f"{own.group(1).lower()}: {own.group(2)}"
    line = parse_line(text)
    is_ours = not line.source or line.source.endswith(".py")
    if line.severity in "WEF":
        return f"{'warning' if line.severity == 'W' else 'error'}: {line.message}"
    return line.message if is_ours else ""
