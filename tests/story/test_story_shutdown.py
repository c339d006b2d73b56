"""SIGTERM to the launcher: streams finish, the exit code is 0, and nothing is left, whatever clients keep open."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from dsv4_client import Client, Delta
from dsv4_client.events import join_events
from story_rig import GREEDY, WAIT_S

from dsv4_backend.records import FinishReason

pytestmark = pytest.mark.server


class Served:
    """`dsv4 serve` as a process of its own."""

    def __init__(self, checkpoint: Path) -> None:
        command = [sys.executable, "-m", "dsv4_backend.cli", "serve", "--checkpoint", str(checkpoint)]
        command += ["--set", "num_threads=1", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        self.before = set(Path("/dev/shm").iterdir())
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.grpc = self._read_until(r"gRPC\s+(\S+)")

    def _read_until(self, pattern: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(pattern, line)
            if found:
                return found[1]
        raise AssertionError(f"the launcher ended with {self.process.wait()}")

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode

    def leftovers(self) -> set[Path]:
        return set(Path("/dev/shm").iterdir()) - self.before


@pytest.fixture
def served(random_checkpoint: Path) -> Iterator[Served]:
    launched = Served(random_checkpoint)
    yield launched
    if launched.process.poll() is None:
        launched.process.kill()
        launched.process.communicate()


def test_sigterm_lets_streams_finish_and_leaves_nothing(served: Served) -> None:
    with Client(served.grpc) as client:
        streams = [client.generate(f"Stream {n}.", max_tokens=80, **GREEDY) for n in range(4)]  # type: ignore[arg-type]
        begun = [next(stream) for stream in streams]
        assert all(isinstance(event, Delta) for event in begun)
        served.process.send_signal(signal.SIGTERM)
        answers = [join_events([event, *stream]) for event, stream in zip(begun, streams, strict=True)]
    assert {item.final.finish_reason for item in answers} == {FinishReason.LENGTH}
    served.process.communicate(timeout=WAIT_S)
    assert served.process.returncode == 0
    assert not served.leftovers()


def test_an_idle_stream_that_stays_open_does_not_hold_the_shutdown_up(served: Served) -> None:
    ended = []
    with grpcclient.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: ended.append(error))
        text = grpcclient.InferInput("text_input", [1], "BYTES")
        text._raw_content = b"\x05\0\0\0Hello"
        count = grpcclient.InferInput("max_tokens", [1], "INT32")
        count._raw_content = b"\x02\0\0\0"
        client.async_stream_infer("dsv4", [text, count])
        with Client(served.grpc) as other:
            other.complete("Hello", max_tokens=2)
        assert served.terminate() == 0
    assert not served.leftovers()
