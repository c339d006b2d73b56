"""The commands of /opt/nim/bin as functions; each returns an exit code (see errors.py)."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Callable

from dsv4_backend.errors import Dsv4Error
from dsv4_nim import commands
from dsv4_nim.errors import NimError

EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130

Command = Callable[[list[str]], int]


def nim_serve() -> int:
    """Serve."""
    return _run("nim-serve", commands.nim_serve)


def list_model_profiles() -> int:
    """Print the profiles and how they fit this machine."""
    return _run("list-model-profiles", commands.list_model_profiles)


def download_to_cache() -> int:
    """Fetch models into the cache."""
    return _run("download-to-cache", commands.download_to_cache)


def create_model_store() -> int:
    """Write a checked copy of a model."""
    return _run("create-model-store", commands.create_model_store)


def nim_healthcheck() -> int:
    """Ask whether requests can be sent."""
    return _run("nim-healthcheck", commands.nim_healthcheck)


def _run(name: str, command: Command) -> int:
    try:
        return command(sys.argv[1:])
    except NimError as error:
        return _refuse(name, error, error.exit_code)
    except Dsv4Error as error:
        return _refuse(name, error, EXIT_FAILED)
    except (http.client.HTTPException, OSError) as error:
        return _refuse(name, error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        sys.stdout.flush()


def _refuse(name: str, error: Exception, code: int) -> int:
    sys.stderr.write(f"{name}: {error}\n")
    return code


COMMANDS = {
    "nim-serve": nim_serve,
    "list-model-profiles": list_model_profiles,
    "download-to-cache": download_to_cache,
    "create-model-store": create_model_store,
    "nim-healthcheck": nim_healthcheck,
}

if __name__ == "__main__":
    # `python -m dsv4_nim.main nim-serve --dry-run`, for a checkout that installed no scripts.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.argv = sys.argv[1:] or ["nim-serve"]
    if os.path.basename(sys.argv[0]) not in COMMANDS:
        sys.exit(f"unknown command {sys.argv[0]!r}. Commands: {', '.join(COMMANDS)}.")
    sys.exit(COMMANDS[os.path.basename(sys.argv[0])]())
