"""A process that stands before the server: started when the server is ready, watched with it, stopped after it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence

from dsv4_backend.launcher.process import ChildProcess

STOP_S = 40.0  # it finishes running answers first
CONNECT_S = 1.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Companion:
    """One process that listens on one port and needs the server."""

    def __init__(
        self, name: str, address: tuple[str, int], command: Callable[[], Sequence[str]], say: Callable[[str], None]
    ) -> None:
        """`command` is asked when the process starts: the server's ports are known then."""
        host, port = address
        self.name = name
        self._address = (_ANY.get(host, host), port)
        self._command = command
        self._say = say
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before it runs."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it, on a thread that lives as long."""
        self._process = ChildProcess(self._command(), os.environ, self._say)

    def is_open(self) -> bool:
        """Tell whether its port takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=CONNECT_S):
            return True
        return False

    def has_ended(self) -> bool:
        """Tell whether it ran and runs no more."""
        return self._process is not None and self._process.poll() is not None

    def death_notice(self) -> str:
        """Say how it ended, with the end of its log."""
        code = self._process.poll() if self._process else None
        tail = self._process.tail() if self._process else ""
        return f"the {self.name} ended by itself with exit code {code}. Its log ends:\n{tail}"

    def stop(self) -> None:
        """Let it finish its answers and end; harmless when it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send(signal.SIGTERM)
            if self._process.wait(STOP_S) is None:
                self._process.send(signal.SIGKILL)
                self._process.wait(STOP_S)
        self._process.close()
