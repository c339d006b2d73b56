"""Keep a server up until a signal comes, then drain it. Fit to be PID 1: signals are handled, orphans are reaped."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

from dsv4_backend.errors import LaunchError
from dsv4_backend.launcher.companion import Companion
from dsv4_backend.launcher.process import adopt_orphans, reap_orphans
from dsv4_backend.launcher.server import Server

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_S = 0.2


class SignalQueue:
    """Signals as bytes in a socket: nothing runs inside a handler, and a wait ends at once when one comes."""

    def __init__(self, numbers: Sequence[signal.Signals] = (*STOP_SIGNALS, signal.SIGCHLD)) -> None:
        self._numbers = numbers
        self._reader, self._writer = socket.socketpair()
        self._old: dict[signal.Signals, object] = {}
        self.num_stops = 0

    def __enter__(self) -> SignalQueue:
        """Take the signals over; on the main thread only."""
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _ignore) for number in self._numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give them back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float) -> None:
        """Return when a signal came or the time is over; count the ones that ask to stop."""
        if not select.select([self._reader], [], [], timeout_s)[0]:
            return
        received = self._reader.recv(4096)
        self.num_stops += sum(number in STOP_SIGNALS for number in received)


class Supervisor:
    """Runs one server from start to clean end, and with it what stands before it.

    Rule: the companion starts when the server is ready and ends after it, so that its running answers come to their
          end. Whichever of the two ends by itself, the other is ended in order, and the reason is told.
    """

    def __init__(
        self,
        server: Server,
        *,
        say: Callable[[str], None],
        start_timeout_s: float = 3600.0,
        companion: Companion | None = None,
    ) -> None:
        self._server = server
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._companion = companion

    def run(self, on_ready: Callable[[], None]) -> int:
        """Start, call `on_ready` once, stay until a signal, drain. A second signal cuts the draining short.

        Raises: ConfigError before anything runs; LaunchError when the server or its companion does not start, or ends
                by itself.
        """
        adopt_orphans()
        with SignalQueue() as signals:
            try:
                self._server.start()
                if self._wait_ready(signals) and self._open_companion(signals):
                    on_ready()
                    self._stay(signals)
                has_lost = self._has_lost_companion()
                code = self._drain(signals)
                if self._companion and has_lost:
                    raise LaunchError(self._companion.death_notice())
                return code
            finally:
                self._server.drain_and_stop(lambda: True)
                if self._companion:
                    self._companion.stop()
                reap_orphans()

    def _wait_ready(self, signals: SignalQueue) -> bool:
        """Return False when a signal came first."""
        deadline = time.monotonic() + self._start_timeout_s
        while not signals.num_stops:
            if self._server.is_ready():
                return True
            if time.monotonic() > deadline:
                limit = f"{self._start_timeout_s:g} s (start_timeout_s)"
                raise LaunchError(f"the server is not ready after {limit}. Its log ends:\n{self._server.log_tail()}")
            self._turn(signals)
        return False

    def _open_companion(self, signals: SignalQueue) -> bool:
        """Start it; return False when it ended, or a signal came, before it listened."""
        if self._companion is None:
            return True
        self._companion.start()
        while not signals.num_stops and not self._companion.has_ended():
            if self._companion.is_open():
                return True
            self._turn(signals)
        return False

    def _has_lost_companion(self) -> bool:
        return self._companion is not None and self._companion.has_ended()

    def _stay(self, signals: SignalQueue) -> None:
        while not signals.num_stops and not self._has_lost_companion():
            self._turn(signals)
            if self._server.poll() is not None:
                raise LaunchError(self._server.death_notice())

    def _turn(self, signals: SignalQueue) -> None:
        signals.wait(POLL_S)
        reap_orphans(self._server.pid, self._companion.pid if self._companion else 0)

    def _drain(self, signals: SignalQueue) -> int:
        asked = signals.num_stops

        def should_hurry() -> bool:
            self._turn(signals)
            return signals.num_stops > asked

        limit = self._server.options.drain_timeout_s
        self._say(f"draining: running requests have {limit:g} s to finish; a second signal ends them at once")
        code = self._server.drain_and_stop(should_hurry)
        self._say("stopped" if code == 0 else f"stopped; tritonserver's exit code was {code}")
        return 0 if code == 0 else 1


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up socket carries the signal."""
