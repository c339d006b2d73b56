"""Measure everything the README shows: `make bench`. One server at a time; figures go to build/bench/results/.

server-cost      the server with a runtime that computes nothing (executor=zero): responses per second, TTFT
perf-analyzer, genai-perf, cost    the default checkpoint on this machine
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dsv4_backend.launcher import Server, ServerOptions

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "build" / "loadtools" / "run.py"
CHECKPOINT = ROOT / "build" / "cache" / "default"
RUNS: tuple[tuple[dict[str, str], tuple[tuple[str, ...], ...]], ...] = (
    ({"executor": "zero"}, (("cost", "--name", "server-cost"), ("perf-analyzer", "--name", "perf-analyzer-zero"))),
    (
        {},
        (
            ("cost", "--name", "cost"),
            ("perf-analyzer",),
            ("genai-perf", "--tokenizer", str(CHECKPOINT)),
        ),
    ),
)


def main() -> int:
    """Run every measurement; return 1 when one failed."""
    failed = []
    for settings, tools in RUNS:
        options = ServerOptions(
            repository=ROOT / "model_repository", settings={"checkpoint": str(CHECKPOINT), **settings}
        )
        with Server(options) as server:
            for tool in tools:
                sys.stdout.write(f"── {' '.join(tool)} {settings or ''}\n")
                sys.stdout.flush()
                command = [sys.executable, str(TOOL), *tool, "--url", server.grpc_address]
                if subprocess.run(command, check=False).returncode:
                    failed.append(tool[0])
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "all measured\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
