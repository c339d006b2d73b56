"""The `dsv4` command. Each subcommand is a module that is imported only when it is chosen.

A subcommand module has `add_arguments(parser)` and `run(args) -> exit status`; the first line of its docstring is its
help. Exit status: 0 fine, 1 the command found a problem, 2 a mistake in the call or a refusal (one line on stderr),
130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from dsv4_backend import __version__
from dsv4_backend.errors import Dsv4Error

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


@dataclass(frozen=True, slots=True)
class Command:
    """Where a subcommand lives, and its line in `dsv4 --help`."""

    module: str
    help: str


class CommandModule(Protocol):
    """What a subcommand module provides."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare options and arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


COMMANDS = {
    "demo": Command("dsv4_backend.commands.demo", "start the server, stream two answers, stop: the whole story once"),
    "serve": Command("dsv4_backend.commands.serve", "run the server until SIGTERM, then drain"),
    "chat": Command("dsv4_client.commands.chat", "talk to a running server"),
    "generate": Command("dsv4_client.commands.generate", "stream the completion of a raw prompt"),
    "gateway": Command(
        "dsv4_client.commands.gateway", "answer OpenAI's and Anthropic's APIs in front of a running server"
    ),
    "tokens": Command("dsv4_client.commands.tokens", "show the token ids of a text or a chat (no server needed)"),
    "check": Command("dsv4_backend.commands.check", "validate a checkpoint and print its sizes"),
    "plan": Command("dsv4_backend.commands.plan", "say what a deployment needs and could reach at best"),
    "kernels": Command("dsv4_backend.commands.kernels", "show which kernel each operator takes, and why"),
    "k8s": Command("dsv4_nim.deploy.command", "write Kubernetes manifests, compose file, alerts or dashboard"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        sys.stdout.write(render_help())
        return 0 if arguments else EXIT_REFUSED
    if first in ("-V", "--version"):
        sys.stdout.write(f"dsv4 {__version__}\n")
        return 0
    if first not in COMMANDS:
        sys.stderr.write(_unknown(first))
        return EXIT_REFUSED
    return _run(first, arguments[1:])


def render_help() -> str:
    """Return the text of `dsv4 --help`."""
    lines = ["usage: dsv4 COMMAND [options]", "", "Serve DeepSeek-V4 from NVIDIA Triton Inference Server.", ""]
    lines.extend(f"  {name:<10}{command.help}" for name, command in COMMANDS.items())
    lines.extend(("", "`dsv4 COMMAND --help` shows the options of one command; `dsv4 --version` the version."))
    return "\n".join(lines) + "\n"


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
    hint = f" Did you mean `dsv4 {close[0]}`?" if close else ""
    return f"dsv4: unknown command {name!r}.{hint} Commands: {', '.join(COMMANDS)}.\n"


def _run(name: str, arguments: Sequence[str]) -> int:
    module = cast(CommandModule, importlib.import_module(COMMANDS[name].module))
    parser = argparse.ArgumentParser(prog=f"dsv4 {name}", description=(module.__doc__ or "").partition("\n")[0])
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        return module.run(args)
    except Dsv4Error as error:
        sys.stderr.write(f"dsv4 {name}: {error}\n")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away; without this the flush at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED


if __name__ == "__main__":
    sys.exit(main())
