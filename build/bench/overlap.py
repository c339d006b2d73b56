"""What planning ahead gives: python build/bench/overlap.py [--streams 1,4,16] [--tokens 256] [--rounds 5]

The default checkpoint behind the engine, its rank in a process of its own, as the server runs it. Rounds with
`overlap=true` and `overlap=false` take turns in one run; medians of tokens per second.
Writes build/bench/results/overlap.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cpu_decode import hardware

from dsv4_backend.assemble import build_engine
from dsv4_backend.config import ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.engine.collect import iterate
from dsv4_backend.records import Limits, Prompt, Request, SamplingParams

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "nano" / "checkpoints" / "official"
OUT = HERE / "results" / "overlap.json"


def main() -> int:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the rank; the engine has the other core")
    args = parser.parse_args()
    engines = {each: opened(overlap=each, threads=args.threads) for each in (True, False)}
    lines = []
    for streams in map(int, args.streams.split(",")):
        rates: dict[bool, list[float]] = {True: [], False: []}
        for number in range(args.rounds + 1):
            for each, engine in engines.items():
                rate = tokens_per_s(engine, streams, args.tokens, number)
                rates[each] += [rate] if number else []  # the first round does not count
        with_it, without = (statistics.median(rates[each]) for each in (True, False))
        lines.append(
            {
                "streams": streams,
                "tokens_per_s": round(with_it, 1),
                "tokens_per_s_without": round(without, 1),
                "ratio": round(with_it / without, 3),
            }
        )
        sys.stdout.write(f"{lines[-1]}\n")
    for engine in engines.values():
        engine.close()
    record: dict[str, Any] = {
        "command": " ".join(["python build/bench/overlap.py", *sys.argv[1:]]),
        "hardware": hardware(),
        "rank_threads": args.threads,
        "lines": lines,
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def opened(*, overlap: bool, threads: int) -> Engine:
    """An engine that is ready."""
    engine = build_engine(ServingConfig(checkpoint=str(CHECKPOINT), overlap=overlap, num_threads=threads))
    engine.start()
    return engine


def tokens_per_s(engine: Engine, streams: int, tokens: int, number: int) -> float:
    """All streams at once, each with a prompt of its own."""
    requests = [
        Request(
            id=f"{number}-{stream}",
            prompt=Prompt(
                token_ids=tuple(100 + (stream * 37 + number * 11 + index * 7) % 900 for index in range(24)),
                sampling=SamplingParams(temperature=0.0),
                limits=Limits(max_tokens=tokens, ignore_eos=True),
            ),
        )
        for stream in range(streams)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=streams) as pool:
        list(pool.map(lambda request: list(iterate(engine, request)), requests))
    return streams * tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
