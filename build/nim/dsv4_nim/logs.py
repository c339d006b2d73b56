"""What the container says on stderr: text, or one JSON object a line (NIM_JSONL_LOGGING), from a level up."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

LEVELS = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "DEFAULT": 2, "WARNING": 3, "ERROR": 4, "CRITICAL": 5}


class Log:
    """Writes lines of `level` and above. Safe to use from several threads."""

    def __init__(self, level: str = "WARNING", *, is_json: bool = False, stream: TextIO | None = None) -> None:
        self._least = LEVELS[level]
        self._is_json = is_json
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def debug(self, text: str) -> None:
        """Say what only somebody who looks for a fault wants."""
        self._write("DEBUG", text)

    def info(self, text: str) -> None:
        """Say what happens."""
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        """Say what somebody should look at."""
        self._write("WARNING", text)

    def error(self, text: str) -> None:
        """Say why something ended."""
        self._write("ERROR", text)

    def _write(self, level: str, text: str) -> None:
        if LEVELS[level] < self._least:
            return
        line = text
        if self._is_json:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"timestamp": time, "level": level, "message": text}, ensure_ascii=False)
        elif level != "INFO":
            line = f"{level}: {text}"
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()
