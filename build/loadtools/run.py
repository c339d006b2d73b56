"""Measure a running server: `python build/loadtools/run.py perf-analyzer|genai-perf|cost --help`.

perf-analyzer  NVIDIA's perf_analyzer against the ensemble       genai-perf  NVIDIA's genai-perf against the ensemble
cost           our own load generator: responses per second, time to first token and gaps at 1, 8 and 64 streams.
               Against a server with `executor=zero` it measures what the server costs without a model.

Run it with the project's environment (`.venv/bin/python`). Results go to build/bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record
from dsv4_client.aio import AsyncClient
from dsv4_client.load import LoadPlan, Spread, run_load, spread
from dsv4_client.stream import Client
from environments import CACHE, LoadToolError, ensure, perf_analyzer

from dsv4_backend.errors import Dsv4Error

PROMPT = "The quick brown fox jumps over the lazy dog. "


def main() -> int:
    """Run the tool that was chosen and record its figures."""
    args = parse_arguments(sys.argv[1:])
    try:
        with Client(args.url, model=args.model) as client:
            client.check_ready()
        server = record.describe_server(args.url, args.model, args.runtime)
        figures = args.measure(args)
    except (LoadToolError, Dsv4Error) as error:
        sys.stderr.write(f"{args.tool}: {error}\n")
        return 1
    path = record.write(args.name or args.tool, record.command_line(), server, figures)
    sys.stdout.write(json.dumps(figures, indent=2) + f"\n→ {path.relative_to(record.ROOT)}\n")
    return 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `measure` is the function of the tool that was chosen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    tools = parser.add_subparsers(dest="tool", required=True)
    for name, measure in (("perf-analyzer", measure_perf_analyzer), ("genai-perf", measure_genai_perf),
                          ("cost", measure_cost)):  # fmt: skip
        tool = tools.add_parser(name)
        tool.set_defaults(measure=measure)
        tool.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default %(default)s)")
        tool.add_argument("--model", default="dsv4")
        tool.add_argument("--runtime", default="dsv4_runtime", help="model whose settings are recorded")
        tool.add_argument("--name", default="", help="name of the result file (default: the tool's)")
        tool.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64] if name == "cost" else [1, 4])
        tool.add_argument(
            "--requests", type=int, default=0, help="requests per run (default: 4 per stream, at least 16)"
        )
        tool.add_argument("--max-tokens", type=int, default=64)
        tool.add_argument("--prompt-tokens", type=int, default=32)
        if name == "genai-perf":
            tool.add_argument(
                "--tokenizer", required=True, type=Path, help="folder with the checkpoint's tokenizer.json"
            )
    return parser.parse_args(arguments)


def num_requests(args: argparse.Namespace, num_streams: int) -> int:
    """How many requests one run sends."""
    return args.requests or max(16, 4 * num_streams)


def measure_cost(args: argparse.Namespace) -> list[dict[str, object]]:
    """Run our own load generator once per number of streams."""
    return asyncio.run(_cost(args))


async def _cost(args: argparse.Namespace) -> list[dict[str, object]]:
    found = []
    async with AsyncClient(args.url, model=args.model) as client:
        warm_up = LoadPlan(prompt=PROMPT, num_streams=1, num_requests=4, max_tokens=16)
        await run_load(client, warm_up)
        for num_streams in args.streams:
            plan = LoadPlan(
                prompt=PROMPT * max(1, args.prompt_tokens // 10),
                num_streams=num_streams,
                num_requests=num_requests(args, num_streams),
                max_tokens=args.max_tokens,
            )
            found.append(asdict(await run_load(client, plan)))
    return found


def measure_perf_analyzer(args: argparse.Namespace) -> list[dict[str, object]]:
    """Run perf_analyzer once per number of streams."""
    folder, libraries = perf_analyzer()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        # Without input data it would fill every optional input, `stop` among them, with random values.
        data = Path(scratch) / "input.json"
        request = {"text_input": [PROMPT], "max_tokens": [args.max_tokens], "stream": [True], "ignore_eos": [True]}
        data.write_text(json.dumps({"data": [request]}))
        for num_streams in args.streams:
            table, export = Path(scratch) / f"{num_streams}.csv", Path(scratch) / f"{num_streams}.json"
            command = [
                str(folder / "perf_analyzer"), "-m", args.model, "-u", args.url, "-i", "grpc", "--streaming", "--async",
                "--input-data", str(data), "--concurrency-range", str(num_streams),
                "--request-count", str(num_requests(args, num_streams)), "-f", str(table),
                "--profile-export-file", str(export),
            ]  # fmt: skip
            _run(command, {"LD_LIBRARY_PATH": str(libraries)}, cwd=scratch)
            first = asdict(first_responses(json.loads(export.read_text())))
            found.append({**read_perf_analyzer(table), "time_to_first_token": first})
    return found


def first_responses(export: Mapping[str, Any]) -> Spread:
    """Return the time from each request to its first response, which perf_analyzer exports but does not sum up."""
    requests = [request for experiment in export["experiments"] for request in experiment["requests"]]
    return spread([(request["response_timestamps"][0] - request["timestamp"]) / 1e9 for request in requests])


def read_perf_analyzer(table: Path) -> dict[str, object]:
    """Read the one row of perf_analyzer's CSV file; microseconds become milliseconds.

    Rule: its latency is that of the whole request, whatever it prints about the first response of decoupled models.
    """
    with table.open(newline="") as file:
        row = next(csv.DictReader(file))
    return {
        "num_streams": int(row["Concurrency"]),
        "requests_per_s": float(row["Inferences/Second"]),
        "responses_per_s": float(row["Response Throughput"]),
        "request_latency": {f"p{rank}_ms": float(row[f"p{rank} latency"]) / 1000 for rank in (50, 90, 99)},
    }


def measure_genai_perf(args: argparse.Namespace) -> list[dict[str, object]]:
    """Run genai-perf once per number of streams."""
    binaries, libraries = perf_analyzer()
    tool = ensure("genai-perf") / "bin"
    tokenizer = copy_tokenizer(args.tokenizer)
    # Nothing is fetched: the tokenizer is a folder of ours.
    environment = {"LD_LIBRARY_PATH": str(libraries), "HF_HUB_OFFLINE": "1",
                   "PATH": f"{binaries}:{tool}:{os.environ['PATH']}"}  # fmt: skip
    found = []
    for num_streams in args.streams:
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                str(tool / "genai-perf"), "profile", "-m", args.model, "-u", args.url,
                "--endpoint-type", "kserve", "--backend", "tensorrtllm", "--streaming",
                "--concurrency", str(num_streams), "--request-count", str(num_requests(args, num_streams)),
                "--synthetic-input-tokens-mean", str(args.prompt_tokens), "--output-tokens-mean", str(args.max_tokens),
                "--extra-inputs", "ignore_eos:true", "--tokenizer", str(tokenizer),
            ]  # fmt: skip
            _run(command, environment, cwd=scratch)
            report = next(Path(scratch).glob("artifacts/*/profile_export_genai_perf.json"))
            found.append({"num_streams": num_streams, **read_genai_perf(json.loads(report.read_text()))})
    return found


def copy_tokenizer(folder: Path) -> Path:
    """Return a folder that transformers reads without the checkpoint's config.json, which it may not know."""
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise LoadToolError(f"{source} does not exist. Name a folder that holds the checkpoint's tokenizer.json.")
    target = CACHE / "genai-perf-tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return target


def read_genai_perf(report: Mapping[str, object]) -> dict[str, object]:
    """Keep unit, mean and the three percentiles of each metric."""
    kept: dict[str, object] = {}
    for name, metric in report.items():
        if isinstance(metric, dict) and "avg" in metric:
            kept[name] = {key: _rounded(metric[key]) for key in ("unit", "avg", "p50", "p90", "p99") if key in metric}
    return kept


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _run(command: Sequence[str], environment: Mapping[str, str], cwd: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode or re.search(r"^Failed to|^error: ", done.stdout + done.stderr, re.MULTILINE):
        raise LoadToolError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
