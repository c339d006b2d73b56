"""The child process of one rank: read the settings, load the weights, then plan in, result out.

python -m dsv4_backend.runner.worker FD      FD is the inherited end of the parent's connection
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import cast

from dsv4_kernels.memory import keep_freed_memory

from dsv4_backend.config import ServingConfig
from dsv4_backend.errors import Dsv4Error
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.messages import Failed, Progress, Ready, Refused
from dsv4_backend.runner.rank import Rank

ORPHAN_POLL_S = 1.0


def main() -> int:
    """Serve one parent until its connection ends."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_exit_when_orphaned, args=(os.getppid(),), daemon=True).start()
    try:
        _serve(connection)
    except (EOFError, OSError):
        return 0  # the parent has closed the connection, or is gone
    return 0


def _serve(connection: Connection) -> None:
    values = cast("Mapping[str, object]", connection.recv())
    keep_freed_memory()
    try:
        config = ServingConfig(**values)  # type: ignore[arg-type]
        rank = Rank.load(config, lambda done, total: connection.send(Progress(done_bytes=done, total_bytes=total)))
    except Dsv4Error as error:
        connection.send(Refused(why=str(error)))
        return
    gc.collect()
    gc.freeze()  # what was loaded stays: the collector need not walk it again between steps
    connection.send(Ready(notes=rank.notes))
    try:
        with _LastWords(connection):
            while True:
                connection.send(rank.execute(cast("StepPlan", connection.recv())))
    finally:
        rank.close()


class _LastWords:
    """Tells the parent why this process dies of an exception; the traceback goes to the log as usual."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and error is not None and not issubclass(kind, (EOFError, OSError)):
            self._connection.send(Failed(why=f"{kind.__name__}: {error}"))


def _exit_when_orphaned(parent_pid: int) -> None:
    """A rank in a long step does not see its connection end; it must not outlive a killed parent."""
    while os.getppid() == parent_pid:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
