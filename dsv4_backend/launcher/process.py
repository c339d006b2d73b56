"""A child process that dies with us and whose output is kept; orphans, and how they are found."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dsv4_backend.launcher.lines import is_decoration

PR_SET_CHILD_SUBREAPER = 36
TAIL_LINES = 200


class ChildProcess:
    """One child with its last lines of output.

    Rule: the death signal follows the *thread* that starts the child, so start it on one that lives as long.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None] | None = None
    ) -> None:
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line
        wrapper = [sys.executable, "-I", str(Path(__file__).with_name("become.py")), str(os.getpid())]
        self._process = subprocess.Popen(
            [*wrapper, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone; the child is told after draining
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended is left alone."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None when it still runs after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Join the reader of an ended child. A grandchild may hold the pipe open, so this waits a moment only."""
        self._reader.join(timeout=2.0)
        if self._process.stdout and not self._reader.is_alive():
            self._process.stdout.close()

    def tail(self, num_lines: int = 30) -> str:
        """Return the last lines of output, without the tables that Triton draws."""
        return "\n".join([line for line in self._tail if not is_decoration(line)][-num_lines:])

    def _read(self) -> None:
        for line in self._process.stdout or ():
            text = line.rstrip("\n")
            self._tail.append(text)
            if self._on_line:
                self._on_line(text)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, as PID 1 is, so that they can be seen and reaped."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def reap_orphans(*known: int) -> list[int]:
    """Collect ended children other than `known` (whose exit codes their owners want) and return their ids."""
    reaped = []
    for pid in children_of(os.getpid()):
        if pid in known:
            continue
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                reaped.append(pid)
        except ChildProcessError:
            continue  # somebody else collected it
    return reaped


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(child) for child in task.read_text(encoding="ascii").split())
        except OSError:
            continue  # the thread ended meanwhile
    return found


def pids_with_argument(text: str) -> list[int]:
    """Return the processes with `text` in an argument: how the stubs of one server are known by its unique prefix."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found
