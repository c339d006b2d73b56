"""Run steps in child processes that hold the model. This side needs no torch.

A rank that dies is an event, not an end: the connection breaks, `execute` raises ExecutorLostError, and `restart`
brings a fresh rank up. A rank whose parent dies sees the connection end and exits.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe

from dsv4_backend.config import ServingConfig
from dsv4_backend.errors import ConfigError, ExecutorLostError
from dsv4_backend.records import StepPlan, StepResult
from dsv4_backend.runner.messages import Failed, Progress, Ready, Refused

Progressed = Callable[[int, int], None]
STOP_S = 5.0
PROGRESS_EVERY_S = 2.0
_log = logging.getLogger(__name__)


class LoggedProgress:
    """Logs how far the weights are, every few seconds and at the end."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + PROGRESS_EVERY_S

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or done_bytes == total_bytes:
            self._next_s = now_s + PROGRESS_EVERY_S
            share = 100 * done_bytes // max(total_bytes, 1)
            _log.info("weights: %d %% of %.1f MB loaded", share, total_bytes / 1e6)


class RankExecutor:
    """Child processes, one per rank; today a mesh of one."""

    def __init__(self, config: ServingConfig, on_progress: Progressed | None = None) -> None:
        self._config = config
        self._on_progress = on_progress or LoggedProgress()
        self._ranks: list[_RankProcess] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks."""
        return tuple(rank.pid for rank in self._ranks)

    def start(self) -> None:
        """Start every rank and wait until all hold their weights. Raises: ConfigError, ExecutorLostError."""
        with self._lock:
            if self._is_closed:
                raise ExecutorLostError("the executor is closed.")
            self._ranks = [_RankProcess(self._config, index) for index in range(self._config.num_ranks)]
        for rank in self._ranks:
            rank.await_ready(self._config.start_timeout_s, self._on_progress)

    def restart(self) -> None:
        """Stop what is left of the ranks and start fresh ones. Raises: ExecutorLostError."""
        self._stop_ranks()
        try:
            self.start()
        except ConfigError as error:
            raise ExecutorLostError(f"the checkpoint cannot be loaded any more: {error}") from error

    def begin(self, plan: StepPlan) -> None:
        """Send the plan to every rank. Raises: ExecutorLostError."""
        for rank in self._living():
            rank.send(plan)

    def finish(self) -> StepResult:
        """Wait for every rank's result; the first one's counts. Raises: ExecutorLostError."""
        results = [rank.receive_result(self._config.step_timeout_s) for rank in self._living()]
        return results[0]

    def close(self) -> None:
        """Stop the ranks for good; a step that is running ends with ExecutorLostError."""
        with self._lock:
            self._is_closed = True
        self._stop_ranks()

    def _living(self) -> list[_RankProcess]:
        if not self._ranks:
            raise ExecutorLostError("no rank is running.")
        return self._ranks

    def _stop_ranks(self) -> None:
        with self._lock:
            ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.stop()


class _RankProcess:
    """One rank: the process and our end of the connection."""

    def __init__(self, config: ServingConfig, index: int) -> None:
        ours, theirs = Pipe()
        self._index = index
        self._connection: Connection = ours
        command = [sys.executable, "-m", "dsv4_backend.runner.worker", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), env=_child_environment(config), stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.pid = self._process.pid
        self.send(asdict(config))

    def send(self, message: object) -> None:
        """Send one message. Raises: ExecutorLostError."""
        try:
            self._connection.send(message)
        except OSError as error:
            raise ExecutorLostError(self._describe()) from error

    def await_ready(self, timeout_s: float, on_progress: Progressed) -> None:
        """Wait for the weights. Raises: ConfigError when the rank refuses the checkpoint, ExecutorLostError."""
        while True:
            message = self._receive(timeout_s)
            if isinstance(message, Ready):
                for note in message.notes:
                    _log.info("rank %d: %s", self._index, note)
                return
            if isinstance(message, Refused):
                raise ConfigError(message.why)
            if isinstance(message, Progress):
                on_progress(message.done_bytes, message.total_bytes)

    def receive_result(self, timeout_s: float) -> StepResult:
        """Wait for a step's result. Raises: ExecutorLostError."""
        message = self._receive(timeout_s)
        if isinstance(message, StepResult):
            return message
        why = message.why if isinstance(message, Failed) else f"it sent {type(message).__name__}"
        raise ExecutorLostError(f"rank {self._index} failed in a step: {why}")

    def stop(self) -> None:
        """End the process: politely by closing the connection, then by force."""
        self._connection.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self, timeout_s: float) -> object:
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise ExecutorLostError(self._describe()) from error
        raise ExecutorLostError(f"rank {self._index} did not answer within {timeout_s:g} s.")

    def _describe(self) -> str:
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"rank {self._index} (pid {self.pid}) closed its connection."
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"rank {self._index} (pid {self.pid}) ended with {cause}."


def _child_environment(config: ServingConfig) -> dict[str, str]:
    """Our environment, our import path (Triton's stub may have extended it), and the thread count."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # torch's threads would spin on the cores that others need
    if config.num_threads:
        environment["OMP_NUM_THREADS"] = str(config.num_threads)
    return environment
