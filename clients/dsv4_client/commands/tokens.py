"""Show the token ids of a text, or of a chat request, without a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv4_backend.chat import ChatEncoder, Protocol
from dsv4_backend.errors import ConfigError
from dsv4_backend.text import TextEncoder, Vocabulary

DEFAULT_TOKENIZER = "build/nano/checkpoints/official"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("text", nargs="?", help="a raw prompt; - reads stdin")
    parser.add_argument("--chat", metavar="FILE", help="the JSON body of an API request instead; - reads stdin")
    parser.add_argument("--protocol", choices=[item.value for item in Protocol], default=Protocol.CHAT.value,
                        help="which API the body belongs to (default %(default)s)")  # fmt: skip
    parser.add_argument("--tokenizer", default=DEFAULT_TOKENIZER, metavar="DIR",
                        help="folder with a tokenizer.json (default %(default)s)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print ids and pieces."""
    folder = Path(args.tokenizer)
    vocabulary = Vocabulary.load(folder)
    token_ids = _encode(args, folder)
    pieces = [vocabulary.token_bytes(token).decode("utf-8", errors="backslashreplace") for token in token_ids]
    sys.stdout.write(_render_json(token_ids, pieces) if args.json else _render(token_ids, pieces))
    return 0


def _encode(args: argparse.Namespace, folder: Path) -> Sequence[int]:
    if (args.text is None) == (args.chat is None):
        raise ConfigError("tokens takes either a text or --chat FILE. Give one of them.")
    if args.chat is not None:
        return ChatEncoder(folder).encode(args.protocol, _read(args.chat)).token_ids
    return TextEncoder(folder).encode(_read("-") if args.text == "-" else args.text)


def _render(token_ids: Sequence[int], pieces: Sequence[str]) -> str:
    lines = [f"{token:>7}  {piece!r}\n" for token, piece in zip(token_ids, pieces, strict=True)]
    return "".join(lines) + f"{len(lines)} tokens\n"


def _render_json(token_ids: Sequence[int], pieces: Sequence[str]) -> str:
    return json.dumps({"token_ids": list(token_ids), "pieces": list(pieces)}, ensure_ascii=False) + "\n"


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read as UTF-8 text: {error}.") from error
