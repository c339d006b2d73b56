"""Talk to a running server: a conversation on the terminal, or one message per line of stdin.

Commands: /reset forgets the conversation, /think on|off|max sets how much the model thinks, /exit leaves. Ctrl-C stops
the answer, not the program; Ctrl-D leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from typing import TextIO

from dsv4_backend.errors import Dsv4Error
from dsv4_client.background import Background
from dsv4_client.commands.arguments import add_sampling_arguments, add_server_arguments, connect, sampling_options
from dsv4_client.commands.output import Screen, Stopwatch, event_json
from dsv4_client.conversation import THINKING_LEVELS, Conversation
from dsv4_client.events import Final
from dsv4_client.options import Options
from dsv4_client.stream import Client
from dsv4_client.thinking import Piece, ThinkingSplitter

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives input() line editing and history where the platform has it

PROMPT = "> "
_COMMANDS = ("/reset", "/exit", "/think", "/help")
_HELP = "/reset  forget the conversation\n/think on|off|max  how much to think\n/exit  leave (or Ctrl-D)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_server_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--think", choices=THINKING_LEVELS, default="on", help="how much to think (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends."""
    with connect(args) as client:
        client.check_ready()
        chat = Chat(client, Conversation(system=args.system, thinking=args.think), args, sys.stdout)
        return chat.run(sys.stdin)


class Chat:
    """One session: reads messages, streams answers, keeps the conversation."""

    def __init__(self, client: Client, conversation: Conversation, args: argparse.Namespace, sink: TextIO) -> None:
        self._client = client
        self._conversation = conversation
        self._options: Options = sampling_options(args)
        self._timeout_s: float | None = args.timeout
        self._is_json: bool = args.json
        self._sink = sink
        self._screen = Screen(sink)

    def run(self, source: TextIO) -> int:
        """Answer every message of `source`. Returns 1 when an answer of a piped session failed."""
        is_terminal = source.isatty()
        failed = False
        for line in _typed_lines() if is_terminal else _piped_lines(source):
            if line.startswith("/"):
                if not self._command(line):
                    break
                continue
            try:
                failed = not self._answer(line) or failed
            except Dsv4Error as error:
                if not is_terminal:
                    raise
                sys.stderr.write(f"{error}\n")
        return int(failed and not is_terminal)

    def _command(self, line: str) -> bool:
        """Obey a slash command. Returns False to leave."""
        name, _, argument = line.partition(" ")
        if name == "/exit":
            return False
        if name == "/reset":
            self._conversation.reset()
            self._tell("The conversation is forgotten.")
        elif name == "/think" and argument.strip() in THINKING_LEVELS:
            self._conversation.thinking = argument.strip()
            self._tell(f"Thinking is {argument.strip()}.")
        elif name == "/think":
            self._tell(f"/think takes one of {', '.join(THINKING_LEVELS)}; it is {self._conversation.thinking}.")
        elif name == "/help":
            self._tell(_HELP)
        else:
            close = difflib.get_close_matches(name, _COMMANDS, n=1)
            self._tell(f"Unknown command {name}." + (f" Did you mean {close[0]}?" if close else f"\n{_HELP}"))
        return True

    def _tell(self, text: str) -> None:
        if self._is_json:
            self._write_json({"type": "note", "text": text})
        else:
            self._sink.write(f"{text}\n")
            self._sink.flush()

    def _write_json(self, value: dict[str, object]) -> None:
        self._sink.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._sink.flush()

    def _answer(self, message: str) -> bool:
        """Stream one answer and remember it. Returns whether it ended well. Ctrl-C ends the answer only."""
        splitter = ThinkingSplitter(is_thinking=self._conversation.is_thinking)
        watch = Stopwatch()
        parts: list[str] = []
        body = self._conversation.body(message)
        final: Final | None = None
        with self._client.generate(body, timeout_s=self._timeout_s, **self._options) as generation:
            try:
                for event in Background(generation):
                    watch.see(event)
                    if isinstance(event, Final):
                        final = event
                        break
                    parts.extend(self._show(splitter.push(event.text)))
            except KeyboardInterrupt:
                self._stopped()
        parts.extend(self._show(splitter.finish()))
        is_good = final is None or not final.error
        if is_good:
            self._conversation.add(message, "".join(parts))
        if final is not None:
            self._close_answer(final, watch)
        return is_good

    def _show(self, pieces: Iterator[Piece]) -> Iterator[str]:
        """Write pieces and yield those of the answer itself."""
        for piece in pieces:
            if self._is_json:
                self._write_json({"type": "thinking" if piece.is_thinking else "text", "text": piece.text})
            elif piece.is_thinking:
                self._screen.thinking(piece.text)
            else:
                self._screen.text(piece.text)
            if not piece.is_thinking:
                yield piece.text

    def _stopped(self) -> None:
        if self._is_json:
            self._write_json({"type": "note", "text": "stopped"})
        else:
            self._screen.note("[stopped]")

    def _close_answer(self, final: Final, watch: Stopwatch) -> None:
        if self._is_json:
            self._sink.write(event_json(final) + "\n")
            self._sink.flush()
            return
        self._screen.note(watch.summary(final))
        if final.error:
            sys.stderr.write(f"dsv4 chat: {final.error}\n")


def _piped_lines(source: TextIO) -> Iterator[str]:
    return (line.strip() for line in source if line.strip())


def _typed_lines() -> Iterator[str]:
    """Yield what is typed; Ctrl-C drops the line, Ctrl-D ends."""
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n/exit or Ctrl-D leaves.\n")
            continue
        if line:
            yield line
