"""`dsv4 chat` on a real terminal: what a person sees and what Ctrl-C does."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client_rig import WAIT_S, Call, FakeServer, Replies, Script, reply

Serve = Callable[[Script], FakeServer]
DSV4 = Path(sys.executable).parent / "dsv4"
START_S = 30.0
AGAIN_S = 0.5


class Terminal:
    """The far side of a pseudo-terminal on which `dsv4 chat` runs."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._descriptor = descriptor
        self._seen = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._descriptor, text.encode("utf-8"))

    def wait_for(self, text: str, *, pressing: str = "") -> str:
        """Read until `text` appears and return what was shown up to its end.

        Rule: `pressing` is typed again whenever nothing happens, as a person would: Python misses a key that comes
              between the prompt and its own wait for input.
        """
        deadline = time.monotonic() + START_S
        wanted = text.encode("utf-8")
        while wanted not in self._seen:
            assert time.monotonic() < deadline, f"{text!r} did not appear; seen: {self._seen!r}"
            ready, _, _ = select.select([self._descriptor], [], [], AGAIN_S)
            if ready:
                self._seen += self._read()
            elif pressing:
                self.type(pressing)
        before, _, self._seen = self._seen.partition(wanted)
        return (before + wanted).decode("utf-8")

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 4096)
        except OSError as error:  # the program has ended
            raise AssertionError(f"dsv4 chat ended; last seen: {self._seen!r}") from error


@contextmanager
def terminal(url: str) -> Iterator[Terminal]:
    """Run `dsv4 chat` on a terminal of its own."""
    near, far = pty.openpty()
    # `setsid` makes the far side the controlling terminal: only then does Ctrl-C become a signal.
    # `env` gives it its meaning back: a shell starts what it puts into the background with Ctrl-C ignored.
    command = ["setsid", "--ctty", "env", "--default-signal=INT", str(DSV4), "chat", "--url", url]
    process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far)
    os.close(far)
    try:
        yield Terminal(near, process)
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(near)


def answer_until_stopped(call: Call) -> Replies:
    """Begin an answer; it ends when the client stops it."""
    yield reply("well</think>I would say", (1,), counts=(3, 1))
    call.stopped.wait(WAIT_S)
    yield reply(reason="cancelled", index=1, counts=(3, 1))


def test_interrupt_stops_the_answer_and_not_the_chat(serve: Serve) -> None:
    server = serve(answer_until_stopped)
    with terminal(server.url) as screen:
        screen.wait_for("> ")
        screen.type("hello\n")
        screen.wait_for("I would say")
        screen.type("\x03")
        screen.wait_for("[stopped]")
        screen.wait_for("> ")
        screen.type("/exit\n")
        assert screen.process.wait(WAIT_S) == 0
    assert server.calls[0].stopped.is_set()


def test_interrupt_at_the_prompt_says_how_to_leave(serve: Serve) -> None:
    with terminal(serve(answer_until_stopped).url) as screen:
        screen.wait_for("> ")
        screen.wait_for("/exit or Ctrl-D leaves", pressing="\x03")
        screen.wait_for("> ")
        screen.type("/exit\n")
        assert screen.process.wait(WAIT_S) == 0


def test_thinking_is_dimmed_on_a_terminal(serve: Serve) -> None:
    with terminal(serve(lambda call: iter([reply("hm</think>four", (1,), reason="stop")])).url) as screen:
        screen.wait_for("> ")
        screen.type("two and two\n")
        assert "\x1b[2mhm\x1b[0m" in screen.wait_for("four")


def test_refused_message_leaves_the_chat_running(serve: Serve) -> None:
    refusal = reply()
    refusal.error_message = "the prompt is too long"
    with terminal(serve(lambda call: iter([refusal])).url) as screen:
        screen.wait_for("> ")
        screen.type("hello\n")
        screen.wait_for("the prompt is too long")
        screen.wait_for("> ")
        screen.type("/exit\n")
        assert screen.process.wait(WAIT_S) == 0
