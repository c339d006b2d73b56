"""Start the server, stream a few chats and one raw prompt through the ensemble, drain and stop."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dsv4_client import Client, Delta, Final

from dsv4_backend.commands.serving import DEFAULT_CHECKPOINT, NANO_NOTE, add_serving_arguments, say, server_options
from dsv4_backend.errors import Dsv4Error, LaunchError
from dsv4_backend.launcher import Server, news

QUESTIONS = ("Hello, who are you?", "What is 417 + 85?", "Get the weather in Malhaven.")
WEATHER: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RAW = "<｜begin▁of▁sentence｜><｜User｜>Sort 5, 2, 9 in ascending order.<｜Assistant｜></think>"
POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_serving_arguments(parser)
    parser.add_argument("--max-tokens", type=int, default=160, metavar="N", help="per answer (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns 0 when all answers came and the server ended cleanly. Raises: ConfigError, LaunchError."""
    config, options = server_options(args)
    if Path(config.checkpoint) == DEFAULT_CHECKPOINT:
        say(NANO_NOTE)
    server = Server(options, on_log=say if args.verbose else _say_news)
    say(f"starting tritonserver on {server.grpc_address} (gRPC) with {config.checkpoint}")
    started = time.monotonic()
    with _terminable():
        try:
            server.start()
            _wait_ready(server, config.start_timeout_s)
            say(f"ready after {time.monotonic() - started:.1f} s")
            with Client(server.grpc_address) as client:
                for question in QUESTIONS:
                    _show(client, f"chat: {question}", chat(question), args.max_tokens)
                _show(client, f"raw prompt: {RAW}", RAW, args.max_tokens)
        finally:
            say("draining and stopping the server")
            code = server.drain_and_stop()
    say("stopped" if code == 0 else f"tritonserver's exit code was {code}")
    return 0 if code == 0 else 1


def chat(question: str) -> dict[str, object]:
    """Return the body of a chat request; the last question comes with a tool."""
    messages = [{"role": "user", "content": question}]
    body: dict[str, object] = {"messages": messages, "thinking": {"type": "disabled"}}
    return body | {"tools": [WEATHER]} if "weather" in question else body


def _wait_ready(server: Server, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not server.is_ready():
        if time.monotonic() > deadline:
            raise LaunchError(f"the server is not ready after {timeout_s:g} s. Its log ends:\n{server.log_tail()}")
        time.sleep(POLL_S)


def _show(client: Client, title: str, prompt: str | dict[str, object], max_tokens: int) -> None:
    """Stream one answer to stdout, then its usage and speed."""
    sys.stdout.write(f"\n── {title}\n")
    began = first = time.monotonic()
    num_first = 0
    with client.generate(prompt, max_tokens=max_tokens, temperature=0.0) as generation:
        for event in generation:
            if isinstance(event, Delta):
                if not num_first:
                    first, num_first = time.monotonic(), len(event.token_ids)
                sys.stdout.write(event.text)
                sys.stdout.flush()
            else:
                sys.stdout.write(f"\n── {_summary(event, first - began, time.monotonic() - first, num_first)}\n")


def _summary(final: Final, ttft_s: float, rest_s: float, num_first: int) -> str:
    """Raises: Dsv4Error when the answer ended with an error."""
    if final.error:
        raise Dsv4Error(f"the answer ended with an error: {final.error}")
    usage, num_rest = final.usage, final.usage.num_output_tokens - num_first
    speed = f", {num_rest / rest_s:.1f} tok/s" if num_rest > 0 and rest_s > 0 else ""
    return (
        f"{usage.num_input_tokens} tokens in ({usage.num_cached_tokens} cached), {usage.num_output_tokens} out,"
        f" finish {final.finish_reason.value}, TTFT {1000 * ttft_s:.0f} ms{speed}"
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that the server is always stopped."""
    old = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_news(line: str) -> None:
    text = news(line)
    if text:
        say(f"  {text}")
