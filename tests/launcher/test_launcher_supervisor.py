"""The launcher as a program: signals, sudden deaths, and what stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher_rig import EchoStream, pids_of, wait_until

from dsv4_backend.launcher import Server

pytestmark = pytest.mark.server
PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, {folder!r})
    from launcher_rig import echo_options
    from dsv4_backend.launcher import Server, Supervisor

    def tell(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")
        sys.stdout.flush()

    server = Server(echo_options(**{changes!r}))
    supervisor = Supervisor(server, say=lambda text: None)
    code = supervisor.run(lambda: tell(server.pid, server.http_port, server.shm_prefix, server.run_directory))
    sys.exit(code)
    """
)


class Launched:
    """A launcher in a process of its own, whose server is ready."""

    def __init__(self, **changes: object) -> None:
        source = PROGRAM.format(folder=str(Path(__file__).parent), changes=changes)
        self.process = subprocess.Popen(
            [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        words = self.process.stdout.readline().split()
        assert words, self.process.communicate()[1]
        self.server_pid, self.http_port, self.prefix, self.run_directory = int(words[0]), int(words[1]), *words[2:]

    @property
    def local_host(self) -> str:
        """As a Server has it."""
        return "127.0.0.1"

    def stop(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def is_clean(self) -> bool:
        """Nothing of it is left."""
        regions = [path for path in Path("/dev/shm").iterdir() if self.prefix in path.name]
        return not regions and not Path(self.run_directory).exists()


@pytest.fixture
def launch() -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def make(**changes: object) -> Launched:
        made.append(Launched(**changes))
        return made[-1]

    yield make
    for launched in made:
        if launched.process.poll() is None:
            launched.stop(signal.SIGTERM)
        launched.process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(launch: Callable[..., Launched], number: signal.Signals) -> None:
    launched = launch()
    assert (launched.stop(number), launched.is_clean()) == (0, True)


def test_a_stream_that_runs_at_sigterm_is_completed(launch: Callable[..., Launched]) -> None:
    launched = launch()
    stream = iter(EchoStream(launched, "hi", 10, 0.1))
    received = [next(stream)]
    launched.process.send_signal(signal.SIGTERM)
    received += list(stream)
    assert (len(received), launched.process.wait(30)) == (10, 0)


def test_a_second_signal_cuts_the_draining_short(launch: Callable[..., Launched]) -> None:
    launched = launch(drain_timeout_s=600.0, exit_timeout_s=2.0)
    next(iter(EchoStream(launched, "hi", 6000, 0.1)))
    launched.process.send_signal(signal.SIGTERM)
    control = Server.control.fget  # the property's function, on our stand-in
    assert control
    assert wait_until(lambda: control(launched).index().get("echo") == "UNLOADING")
    launched.stop(signal.SIGTERM)
    assert launched.is_clean()


def test_a_server_that_dies_by_itself_ends_the_launcher_with_its_log(launch: Callable[..., Launched]) -> None:
    launched = launch()
    os.kill(launched.server_pid, signal.SIGKILL)
    error = launched.process.communicate(timeout=30)[1]
    assert launched.process.returncode == 1
    assert "tritonserver ended by itself by signal 9" in error


def test_a_killed_launcher_leaves_no_server(launch: Callable[..., Launched]) -> None:
    launched = launch()
    os.kill(launched.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(launched.server_pid))


def test_the_next_launcher_removes_what_a_killed_one_left(launch: Callable[..., Launched]) -> None:
    killed = launch()
    os.kill(killed.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not pids_of(killed.prefix))
    launch()
    assert killed.is_clean()
