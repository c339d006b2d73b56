"""Stream the completion of a raw prompt from a running server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TextIO

from dsv4_client.background import Background
from dsv4_client.commands.arguments import add_sampling_arguments, add_server_arguments, connect, sampling_options
from dsv4_client.commands.output import Stopwatch, event_json
from dsv4_client.events import Delta, Event, Final
from dsv4_client.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("prompt", nargs="?", default="-", help="the text to continue; - or nothing reads stdin")
    add_server_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json: logprobs and N alternatives per token")
    parser.add_argument("--echo", action="store_true", help="print the prompt before its completion")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-sequence token")
    parser.add_argument("--no-stream", action="store_true", help="ask for one response instead of a stream")


def run(args: argparse.Namespace) -> int:
    """Generate once. Returns 1 when the server reports a failure in mid-stream."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    options = _options(args)
    with connect(args) as client, client.generate(prompt, timeout_s=args.timeout, **options) as generation:
        show = _show_json if args.json else _show_text
        return show(Background(generation), sys.stdout)


def _options(args: argparse.Namespace) -> Options:
    options = sampling_options(args)
    options["stream"] = not args.no_stream
    if args.logprobs is not None:
        options["logprobs"] = args.logprobs
    if args.ignore_eos:
        options["ignore_eos"] = True
    if args.echo:
        options["exclude_input_in_output"] = False
    return options


def _show_json(events: Iterator[Event], sink: TextIO) -> int:
    failed = False
    for event in events:
        sink.write(event_json(event) + "\n")
        sink.flush()
        failed = isinstance(event, Final) and bool(event.error)
    return int(failed)


def _show_text(events: Iterator[Event], sink: TextIO) -> int:
    watch = Stopwatch()
    for event in events:
        watch.see(event)
        if isinstance(event, Delta):
            sink.write(event.text)
            sink.flush()
            continue
        sink.write("\n")
        sink.flush()
        sys.stderr.write(f"{watch.summary(event)}\n" if not event.error else f"dsv4 generate: {event.error}\n")
        return int(bool(event.error))
    return 1
