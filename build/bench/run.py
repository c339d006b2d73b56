"""Measure everything the README shows: `make bench`. One server at a time; figures go to build/bench/results/.

server-cost, perf-analyzer-zero    the server with a runtime that computes nothing (executor=zero)
cost, perf-analyzer, genai-perf    the default checkpoint on this machine

At the end the table for the README is printed; `--table` prints it from the last figures without measuring.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsv4_backend.launcher import Server, ServerOptions

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "build" / "loadtools" / "run.py"
RESULTS = ROOT / "build" / "bench" / "results"
CHECKPOINT = ROOT / "build" / "nano" / "checkpoints" / "official"
RUNS: tuple[tuple[dict[str, str], tuple[tuple[str, ...], ...]], ...] = (
    (
        {"executor": "zero"},
        (
            ("cost", "--name", "server-cost", "--max-tokens", "512"),
            ("perf-analyzer", "--name", "perf-analyzer-zero", "--requests", "400"),
        ),
    ),
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
    """Run every measurement and print the table; return 1 when one failed."""
    failed = [] if "--table" in sys.argv[1:] else measure()
    sys.stdout.write("\n".join(table()) + "\n")
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return int(bool(failed))


def measure() -> list[str]:
    """Measure all; return the tools that failed."""
    failed = []
    for settings, tools in RUNS:
        options = ServerOptions(
            repository=ROOT / "model_repository", settings={"checkpoint": str(CHECKPOINT), **settings}
        )
        with Server(options) as server:
            for tool in tools:
                sys.stderr.write(f"── {' '.join(tool)} {settings or ''}\n")
                command = [sys.executable, str(TOOL), *tool, "--url", server.grpc_address]
                if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
                    failed.append(tool[0])
    return failed


def table() -> list[str]:
    """Return the Markdown rows of the last figures."""
    rows = [
        "| measured by | streams | responses/s | tokens/s | TTFT p50 / p99 ms | gap p50 / p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        figures = record.get("results", ())  # other programs keep records without them here too
        rows += [_row(record["name"], each) for each in figures]
    return rows


def _row(name: str, figures: dict[str, Any]) -> str:
    """One line, from our own tool's, perf_analyzer's or genai-perf's names for the same things."""
    first = figures["time_to_first_token"]
    gap = figures.get("gap") or figures.get("inter_token_latency") or {}
    tokens = figures.get("tokens_per_s") or figures.get("output_token_throughput", {}).get("avg")
    cells = [
        name,
        str(figures["num_streams"]),
        _number(figures.get("responses_per_s")),
        _number(tokens),
        _pair(first),
        _pair(gap),
    ]
    return f"| {' | '.join(cells)} |"


def _pair(spread: dict[str, Any]) -> str:
    values = [spread.get(f"{rank}_ms", spread.get(rank)) for rank in ("p50", "p99")]
    return " / ".join(f"{value:.1f}" for value in values if value is not None) or "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
