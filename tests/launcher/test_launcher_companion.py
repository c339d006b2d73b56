"""What stands before the server: it starts after it and ends after it, and neither outlives the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher_rig import wait_until

from dsv4_backend.launcher import free_ports

pytestmark = pytest.mark.server
PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, {folder!r})
    from launcher_rig import echo_options
    from dsv4_backend.errors import LaunchError
    from dsv4_backend.launcher import Companion, Server, Supervisor

    def tell(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")
        sys.stdout.flush()

    server = Server(echo_options())
    command = lambda: [sys.executable, "-c", {code!r}, str(server.http_port)]
    companion = Companion("front", ("127.0.0.1", {port}), command, lambda text: tell("front:", text))
    supervisor = Supervisor(server, say=lambda text: tell("says:", text), companion=companion)
    try:
        code = supervisor.run(lambda: tell("ready", server.pid, companion.pid))
    except LaunchError as error:
        tell("error:", str(error))
        code = 2
    sys.exit(code)
    """
)
# Listens, asks the server behind it once, and tells at SIGTERM whether that is still there.
FRONT = textwrap.dedent(
    """
    import signal, socket, sys, urllib.request
    def is_up():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{{sys.argv[1]}}/v2/health/live", timeout=5).status == 200
        except OSError:
            return False
    def stop(number, frame):
        print("server up at the end:", is_up(), flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("server up at the start:", is_up(), flush=True)
    listener = socket.create_server(("127.0.0.1", {port}))
    while True:
        listener.accept()[0].close()
    """
)


class Pair:
    """A launcher with a server and a companion, both up unless `code` ends at once."""

    def __init__(self, code: str = FRONT) -> None:
        (port,) = free_ports(1)
        source = PROGRAM.format(folder=str(Path(__file__).parent), port=port, code=code.format(port=port))
        self.process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)

    def wait_ready(self) -> tuple[int, int]:
        """Return the process ids of the server and its companion."""
        for line in self.process.stdout or ():
            if line.startswith("ready"):
                _, server, companion = line.split()
                return int(server), int(companion)
        raise AssertionError("it did not come up")

    def end(self) -> tuple[int, str]:
        """Return the exit code and what was still said."""
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*code: str) -> Pair:
        made.append(Pair(*code))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.communicate(timeout=60)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_signal_ends_the_server_first_and_then_what_stands_before_it(pair: Callable[..., Pair]) -> None:
    started = pair()
    server, companion = started.wait_ready()
    started.process.send_signal(signal.SIGTERM)
    code, said = started.end()
    assert code == 0 and "server up at the end: False" in said
    assert is_gone(server) and is_gone(companion)


def test_a_companion_that_dies_drains_the_server_and_is_named(pair: Callable[..., Pair]) -> None:
    started = pair()
    server, companion = started.wait_ready()
    os.kill(companion, signal.SIGKILL)
    code, said = started.end()
    assert code == 2 and said.index("draining") < said.index("error: the front ended by itself with exit code -9")
    assert is_gone(server)


def test_a_companion_that_cannot_start_ends_the_server_with_its_log(pair: Callable[..., Pair]) -> None:
    code, said = pair("raise SystemExit('no such key file')").end()
    assert code == 2 and "the front ended by itself with exit code 1" in said and "no such key file" in said


def test_a_server_that_dies_takes_its_companion_along(pair: Callable[..., Pair]) -> None:
    started = pair()
    server, companion = started.wait_ready()
    os.kill(server, signal.SIGKILL)
    code, said = started.end()
    assert code == 2 and "tritonserver ended by itself" in said
    assert wait_until(lambda: is_gone(companion))


def test_serve_starts_the_gateway_and_stops_it(nano_checkpoint: Path) -> None:
    (port,) = free_ports(1)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--gateway-port", str(port)]
    command = [sys.executable, "-m", "dsv4_backend.cli", "serve", "--checkpoint", str(nano_checkpoint), *ports]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
        try:
            said = next(line for line in serving.stderr or () if "gateway  http" in line)
            assert f"http://127.0.0.1:{port}/v1" in said
            body = b'{"model": "dsv4-nano", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}'
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
            )
            assert urllib.request.urlopen(asked, timeout=60).status == 200
        finally:
            serving.terminate()
            serving.communicate(timeout=120)
    assert serving.returncode == 0


def test_a_taken_gateway_port_is_refused_before_anything_starts(nano_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--gateway-port", str(port)]
        command = [sys.executable, "-m", "dsv4_backend.cli", "serve", "--checkpoint", str(nano_checkpoint), *ports]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"gateway port {port} on 127.0.0.1 is in use. Choose another with --gateway-port" in done.stderr
