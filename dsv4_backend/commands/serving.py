"""What `serve` and `demo` share: where the checkpoint and the model repository are, and the server's options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsv4_backend.config import ServingConfig, parse_serving_config
from dsv4_backend.errors import ConfigError
from dsv4_backend.launcher import ServerOptions, find_installation

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CHECKPOINT = ROOT / "build" / "nano" / "checkpoints" / "official"
NANO_NOTE = (
    "The default checkpoint is a V4 of 12 million parameters, trained for a few tasks (build/nano/README.md); it says"
    " that it does not know the rest. Name a real one with --checkpoint DIR."
)


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is served and with which settings."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder with config.json and safetensors files")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", metavar="DIR",
                        help="model repository (default: this project's)")  # fmt: skip
    parser.add_argument("--tritonserver", type=Path, metavar="DIR",
                        help="tree with bin/tritonserver (default: NVIDIA's image, or the wheel)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the runtime, such as max_sequences=32 (may be repeated)")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show every line of the server's log")


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return name → value of `NAME=VALUE` pairs. Raises: ConfigError."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set got {pair!r} but needs NAME=VALUE, such as --set max_sequences=32.")
        settings[name] = value
    return settings


def resolve_settings(args: argparse.Namespace) -> tuple[ServingConfig, dict[str, str]]:
    """Return the checked settings, and their text for the model repository.

    Raises: ConfigError for a setting that is unknown or wrong, or a checkpoint that is not there.
    """
    settings = parse_settings(args.settings)
    chosen = args.checkpoint or Path(settings.get("checkpoint", DEFAULT_CHECKPOINT))
    checkpoint = chosen.expanduser().resolve()
    if not (checkpoint / "config.json").is_file():
        fix = (
            "It belongs to the repository: `git status` tells."
            if checkpoint == DEFAULT_CHECKPOINT
            else "Name another folder."
        )
        raise ConfigError(f"there is no config.json in the checkpoint {checkpoint}. {fix}")
    settings["checkpoint"] = str(checkpoint)
    config = parse_serving_config(settings)
    for name in ("cache_tokens", "context_tokens"):  # a gateway reads there how long a text may be
        settings.setdefault(name, str(getattr(config, name)))
    return config, settings


def server_options(
    args: argparse.Namespace, *, ports: Mapping[str, int] | None = None, host: str = "127.0.0.1"
) -> tuple[ServingConfig, ServerOptions]:
    """Return the settings and the server's options. Rule: `ports` by name (http, grpc, metrics); 0 = any free one."""
    config, settings = resolve_settings(args)
    chosen = ports or {}
    return config, ServerOptions(
        repository=args.repository,
        settings=settings,
        host=host,
        http_port=chosen.get("http", 0),
        grpc_port=chosen.get("grpc", 0),
        metrics_port=chosen.get("metrics", 0),
        installation=find_installation(args.tritonserver),
        drain_timeout_s=config.drain_timeout_s,
    )


def say(text: str) -> None:
    """Tell the person in front of it; stdout stays for answers."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
