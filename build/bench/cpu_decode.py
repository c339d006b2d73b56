"""Where a decode step goes on this CPU: python build/bench/cpu_decode.py --folder DIR [--shapes small,large]

For a small and a large random checkpoint (written into DIR, named first, unless they are there) and each number of
threads: milliseconds per token at batch 1 and tokens per second of 8 streams, prefill of 512 and 4,096 tokens, the
time inside the C++ library, inside torch and in Python, the weight bytes that a token reads, and the share of this
machine's measured read bandwidth that they amount to.
One thread is timed by its own CPU clock, so that other programs on the machine take no part beyond the caches and the
memory they share; more threads are timed by the wall. Writes build/bench/results/cpu/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from cpu_models import Streams, load_model, make_checkpoint, num_parameters, random_prompt, stored_bytes

from dsv4_backend.config import CacheFormat
from dsv4_backend.model import Transformer

RESULTS = Path(__file__).resolve().parent / "results" / "cpu"
STEPS, ROUNDS, STREAMS = 24, 3, 8


def now() -> float:
    """Seconds of this thread's CPU clock, or of the wall where several threads work."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


class TimedLibrary:
    """Stands before the compiled library and adds up the time inside its functions."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)

        def timed(*arguments: Any) -> Any:
            started = now()
            result = function(*arguments)
            self.seconds[name] += now() - started
            self.calls[name] += 1
            return result

        setattr(self, name, timed)
        return timed


def read_bandwidth() -> float:
    """Bytes per second that torch reads from memory with the threads it has now: the median of 21 sums of 1 GB."""
    block, rates = torch.ones(1 << 28, dtype=torch.float32), []
    for _ in range(21):
        started = now()
        block.sum()
        rates.append(block.nbytes / (now() - started))
    return statistics.median(rates)


def active_bytes(model: Transformer) -> dict[str, int]:
    """Bytes of weights that one token reads, as they lie in memory, by format: k of E experts, one embedding row."""
    share = model.config.num_active_experts / model.config.num_experts
    totals: Counter[str] = Counter()
    seen: set[int] = set()

    def add(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            totals["dense"] += value.nbytes
        elif hasattr(value, "num_experts"):
            totals["experts"] += int(value.resident_bytes * share)
        elif hasattr(value, "resident_bytes"):
            totals["projections"] += value.resident_bytes
        elif isinstance(value, tuple):
            for item in value:
                add(item)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                if name not in ("embed", "tid2eid"):
                    add(getattr(value, name))

    add(model.weights)
    return {**totals, "total": sum(totals.values())}


def decode(model: Transformer, context: int, num_streams: int, steps: int) -> list[float]:
    """Seconds of each decode step after a prompt of `context` tokens per stream."""
    streams = Streams(model, context + steps + 2, num_streams, CacheFormat.FP32)
    chosen = {}
    for each in range(num_streams):
        chosen[each] = [int(streams.step({each: random_prompt(context, each)})[-1].argmax())]
    seconds = []
    for _ in range(steps):
        started = now()
        logits = streams.step(chosen)
        chosen = {each: [int(logits[each].argmax())] for each in range(num_streams)}
        seconds.append(now() - started)
    return seconds


def prefill(model: Transformer, count: int, chunk: int = 512) -> float:
    """Tokens per second of a prompt, in chunks as the scheduler cuts them."""
    streams = Streams(model, count, 1, CacheFormat.FP32)
    prompt = random_prompt(count, 7)
    started = now()
    for first in range(0, count, chunk):
        streams.step({0: prompt[first : first + chunk]})
    return count / (now() - started)


def profile(model: Transformer, context: int, steps: int) -> dict[str, Any]:
    """Where a token's time goes: the library, torch operators, the rest, which is Python; and the operators by name.

    Rule: the operators are timed one by one, which computes the same bits a little slower than whole layers do.
    """
    streams = Streams(model, context + 4 * steps + 4, 1, CacheFormat.FP32)
    token = [int(streams.step({0: random_prompt(context, 0)})[-1].argmax())]
    total, timed = timed_steps(model, streams, token, steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced:
        for _ in range(steps):
            streams.step({0: token})
    events = traced.key_averages()
    parted = [model, *model.layers]
    wholes = [part.whole for part in parted]
    for part in parted:
        part.whole = None
    composed, parts = timed_steps(model, streams, token, steps)
    for part, whole in zip(parted, wholes, strict=True):
        part.whole = whole  # type: ignore[assignment]
    ms = 1e3 / steps
    library = sum(timed.seconds.values())
    return {
        "ms_per_token": round(total * ms, 3),
        "library_ms": round(library * ms, 3),
        "torch_ms_traced": round(sum(event.self_cpu_time_total for event in events) / 1e6 * ms, 3),
        "outside_library_ms": round((total - library) * ms, 3),
        "library_calls": sum(timed.calls.values()) / steps,
        "torch_calls": sum(event.count for event in events) / steps,
        "operators": {
            "ms_per_token": round(composed * ms, 3),
            "ms": {name: round(value * ms, 3) for name, value in parts.seconds.most_common()},
        },
    }


def timed_steps(model: Transformer, streams: Streams, token: list[int], steps: int) -> tuple[float, TimedLibrary]:
    """Seconds of some decode steps, and of the library's functions in them."""
    twins = model.ops.linear.__self__  # type: ignore[attr-defined]
    real = twins.library
    twins.library = timed = TimedLibrary(real)
    started = now()
    for _ in range(steps):
        streams.step({0: token})
    total = now() - started
    twins.library = real
    return total, timed


def median_rate(values: list[float]) -> float:
    """Median of rounds."""
    return statistics.median(values)


def measure(target: Path, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one checkpoint at one number of threads."""
    torch.set_num_threads(threads)
    started, rounds, context = now(), range(args.rounds), args.context
    model = load_model(target)
    loaded_s, bandwidth = now() - started, read_bandwidth()
    decode(model, context, 1, 4)
    alone = [1e3 * statistics.median(decode(model, context, 1, STEPS)) for _ in rounds]
    ms, read = statistics.median(alone), active_bytes(model)
    figures: dict[str, Any] = {
        "threads": threads,
        "clock": "thread CPU time" if threads == 1 else "wall",
        "load_s": round(loaded_s, 2),
        "decode_ms_per_token": round(ms, 3),
        "decode_tokens_per_s": round(1e3 / ms, 1),
        "decode_rounds_ms": [round(value, 3) for value in alone],
        "active_bytes_per_token": read,
        "read_bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "share_of_bandwidth": round(read["total"] / (ms / 1e3) / bandwidth, 3),
        "profile": profile(model, context, STEPS),
    }
    if not args.decode_only:
        together = [STREAMS / statistics.median(decode(model, context, STREAMS, STEPS // 2)) for _ in rounds]
        figures["decode_8_streams_tokens_per_s"] = round(statistics.median(together), 1)
        figures["prefill_512_tokens_per_s"] = round(statistics.median(prefill(model, 512) for _ in rounds), 1)
    if args.long:
        figures["prefill_4096_tokens_per_s"] = round(prefill(model, 4096), 1)
    return figures


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    wanted = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in wanted if flag in flags.split()],
        "load_average_1m": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
    }


def main() -> int:
    """Measure, print and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are, or will be written")
    parser.add_argument("--shapes", default="small,large")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--context", type=int, default=512, help="tokens before the measured ones")
    parser.add_argument("--decode-only", action="store_true", help="neither 8 streams nor prefill")
    parser.add_argument("--long", action="store_true", help="prefill of 4,096 tokens as well")
    parser.add_argument("--name", default="decode", help="of the result file")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "command": f"python build/bench/cpu_decode.py --folder DIR {' '.join(sys.argv[3:])}",
        "hardware": hardware(),
        "context_tokens": args.context,
        "checkpoints": {},
    }
    for name in args.shapes.split(","):
        target = make_checkpoint(args.folder, name)
        record["checkpoints"][name] = {
            "parameters": num_parameters(target),
            "stored_bytes": stored_bytes(target),
            "runs": [measure(target, int(count), args) for count in args.threads.split(",")],
        }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{args.name}.json").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
