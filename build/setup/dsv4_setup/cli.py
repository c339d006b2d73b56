"""Arguments and output of set-up."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dsv4_setup.locks import TARGETS, LockError
from dsv4_setup.packages import PackageError
from dsv4_setup.preflight import IMAGE_ROOT, findings, inspect
from dsv4_setup.steps import Checkout, pending, run


def main(arguments: Sequence[str], *, root: Path) -> int:
    """Check the machine, run what is pending, and return the exit code."""
    options = _parser().parse_args(arguments)
    if not is_machine_fit(root, options.ports):
        return 1
    if options.preflight:
        _say("preflight: this machine has what is needed")
        return 0
    checkout = Checkout(root, options.target or default_target(), torch=options.torch)
    started = time.monotonic()
    try:
        todo = pending(checkout)
        if todo:
            _say(f"set-up of {root} for {checkout.target} (a few minutes the first time; an interrupted one resumes)")
            run(checkout, todo, _say)
            _say(f"set-up done in {time.monotonic() - started:.0f} s")
    except (PackageError, LockError, OSError, subprocess.CalledProcessError) as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def is_machine_fit(root: Path, ports: Sequence[int]) -> bool:
    """Print everything that this machine lacks; tell whether to go on."""
    found = findings(inspect(root, ports=ports))
    for finding in found:
        print(f"{'missing' if finding.is_fatal else 'note'}: {finding.what}\n    fix: {finding.fix}", file=sys.stderr)
    return not any(finding.is_fatal for finding in found)


def default_target() -> str:
    """Inside NVIDIA's Triton image its own server and Python are used; elsewhere the CPU lock."""
    return "nvidia-image" if (IMAGE_ROOT / "bin" / "tritonserver").is_file() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build/setup/main.py", description="Set this checkout up.")
    parser.add_argument("--preflight", action="store_true", help="only say what is missing")
    parser.add_argument("--target", choices=TARGETS, default="", help="lock to install (default: by the machine)")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto: the CPU build where pip offers one, else CUDA's of several GB")  # fmt: skip
    parser.add_argument("--ports", type=int, nargs="*", default=(), help="ports that are about to be opened")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)
