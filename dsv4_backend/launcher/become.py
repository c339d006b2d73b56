"""The step between fork and exec: `python become.py PARENT COMMAND …` dies with PARENT and becomes COMMAND.

A program of its own, because code between fork and exec in a process with threads may hang.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def become(parent: int, command: Sequence[str]) -> None:
    """Ask the kernel for SIGTERM at the parent's death, unblock all signals, and exec."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit(f"process {parent} ended before {command[0]} started")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(command[0], list(command), os.environ)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
