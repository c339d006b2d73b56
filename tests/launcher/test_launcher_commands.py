"""`dsv4 demo` and `dsv4 serve` as a person runs them: real server, the bundled checkpoint."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_client import Client, Delta, Final

from dsv4_backend.records import FinishReason

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
DSV4 = [sys.executable, "-m", "dsv4_backend.cli"]


class Serving:
    """A running `dsv4 serve` on free ports."""

    def __init__(self, checkpoint: Path, *settings: str) -> None:
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command = [*DSV4, "serve", "--checkpoint", str(checkpoint), *ports]
        for setting in settings:
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = ""
        self.grpc_address = self._read_address()

    def _read_address(self) -> str:
        for line in self.process.stderr or ():
            self.said += line
            found = re.search(r"gRPC +(\S+)", line)
            if found:
                return found.group(1)
        raise AssertionError(f"it did not come up:\n{self.said}")


@pytest.fixture
def serving(nano_checkpoint: Path) -> Iterator[Serving]:
    """A server with a drain limit of one second."""
    started = Serving(nano_checkpoint, "drain_timeout_s=1")
    yield started
    if started.process.poll() is None:
        started.process.terminate()
    started.process.communicate(timeout=60)


def refusal(*arguments: str) -> str:
    """Run a command that must be refused and return what it says."""
    done = subprocess.run([*DSV4, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_the_demo_without_a_checkpoint_gets_right_answers_and_exits_0() -> None:
    done = subprocess.run([*DSV4, "demo"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"out, finish (\w+), TTFT", done.stdout) == ["stop"] * 4
    assert "417 + 85 = 502" in done.stdout and "2, 5, 9" in done.stdout and 'invoke name="get_weather"' in done.stdout


def test_a_stream_at_the_drain_limit_gets_a_clear_end_and_serve_exits_0(serving: Serving) -> None:
    with (
        Client(serving.grpc_address) as client,
        client.generate("on and on", max_tokens=50_000, ignore_eos=True) as generation,
    ):
        assert isinstance(next(generation), Delta)
        serving.process.send_signal(signal.SIGTERM)
        last = list(generation)[-1]
    assert isinstance(last, Final)
    assert (last.finish_reason, serving.process.wait(60)) == (FinishReason.CANCELLED, 0)


def test_a_taken_port_is_refused_with_the_option_to_change(serving: Serving, nano_checkpoint: Path) -> None:
    port = serving.grpc_address.rpartition(":")[2]
    said = refusal("serve", "--checkpoint", str(nano_checkpoint), "--http-port", "0", "--grpc-port", port)
    assert f"port {port} on 127.0.0.1 is in use. Choose another with --grpc-port" in said


def test_an_unknown_setting_names_the_nearest(nano_checkpoint: Path) -> None:
    said = refusal("serve", "--checkpoint", str(nano_checkpoint), "--set", "max_sequence=3")
    assert "did you mean max_sequences?" in said


def test_a_setting_without_a_value_is_refused(nano_checkpoint: Path) -> None:
    assert "needs NAME=VALUE" in refusal("serve", "--checkpoint", str(nano_checkpoint), "--set", "max_sequences")


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert f"no config.json in the checkpoint {tmp_path}" in refusal("demo", "--checkpoint", str(tmp_path))
