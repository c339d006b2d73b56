"""What drafts give on the bundled model: python build/bench/drafts.py [--count 8]

Decode speed of one request at a time and of 32 together, with drafts and without, on the same held-out prompts, in one
run; writes build/bench/results/drafts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "nano"))

from nano_data import Example  # noqa: E402 - the folder of the bundled model is no package
from nano_eval.cells import Cell  # noqa: E402

from dsv4_backend.assemble import build_engine  # noqa: E402
from dsv4_backend.config import Drafter, ServingConfig  # noqa: E402
from dsv4_backend.engine import Engine  # noqa: E402
from dsv4_backend.engine.collect import iterate  # noqa: E402
from dsv4_backend.metrics import NullMetrics  # noqa: E402
from dsv4_backend.records import Limits, Prompt, Request, SamplingParams  # noqa: E402

CHECKPOINTS = HERE.parent / "nano" / "checkpoints"
RESULT = HERE / "results" / "drafts.json"
FAMILIES = ("tools", "greet", "json", "copy", "arithmetic", "recall")
ROUNDS = 3
TOGETHER = 32


@dataclass
class Counts(NullMetrics):
    """Keeps the counters of drafts."""

    counts: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, amount: float = 1.0, **_labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + amount


@dataclass(frozen=True)
class Way:
    """How a server drafts, and what it serves."""

    name: str
    drafter: Drafter = Drafter.NONE
    max_drafts: int = 0
    checkpoint: str = "official"

    def config(self) -> ServingConfig:
        """One thread, no prefix cache: only decoding is compared."""
        return ServingConfig(
            checkpoint=str(CHECKPOINTS / self.checkpoint),
            drafter=self.drafter,
            max_drafts=self.max_drafts,
            max_sequences=TOGETHER,
            prefix_cache=False,
            num_threads=1,
        )


OFF = Way("off")
WAYS = (
    OFF,
    Way("ngram 4", Drafter.NGRAM, 4),
    Way("mtp 1", Drafter.MTP, 1),
    Way("mtp 2", Drafter.MTP, 2),
    Way("mtp 3", Drafter.MTP, 3),
    Way("mtp 2, nvfp4", Drafter.MTP, 2, "nvfp4"),
)


class Serving:
    """One engine, and what it counted."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.metrics = Counts()
        self.engine = build_engine(way.config(), self.metrics)
        self.engine.start()

    def take_counts(self) -> tuple[float, float, float]:
        """Drafted tokens, accepted ones, and rows that had drafts since the last call."""
        names = ("dsv4_drafted_tokens_total", "dsv4_accepted_tokens_total", "dsv4_draft_rows_total")
        drafted, accepted, rows = (self.metrics.counts.pop(name, 0.0) for name in names)
        return drafted, accepted, rows


@contextmanager
def servers() -> Iterator[list[Serving]]:
    """All ways at once: they are asked in turn, so that a noisy machine is the same for all."""
    made = [Serving(way) for way in WAYS]
    try:
        yield made
    finally:
        for item in made:
            item.engine.close()


def ask(serving: Engine, number: int, example: Example) -> tuple[int, float]:
    """Return the tokens after the first chunk, and the seconds that they took."""
    prompt = Prompt(
        token_ids=example.token_ids[: example.num_prompt_tokens],
        sampling=SamplingParams(temperature=0.0),
        limits=Limits(max_tokens=64),
    )
    first_s, count = 0.0, 0
    for chunk in iterate(serving, Request(id=f"r{number}", prompt=prompt)):
        if first_s:
            count += len(chunk.token_ids)
        first_s = first_s or time.perf_counter()
    return count, time.perf_counter() - first_s


def alone(serving: Engine, examples: Sequence[Example]) -> float:
    """Decoded tokens per second, one request after the other."""
    results = [ask(serving, number, example) for number, example in enumerate(examples)]
    return sum(count for count, _ in results) / sum(seconds for _, seconds in results)


def together(serving: Engine, examples: Sequence[Example]) -> float:
    """Decoded tokens per second of many requests at once."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda pair=pair: counts.append(ask(serving, *pair)[0]))
        for pair in enumerate((list(examples) * TOGETHER)[:TOGETHER])
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure(count: int) -> dict[str, Any]:
    """Measure every way in turn, several times; ratios are to no drafts in the same round."""
    record: dict[str, Any] = {"command": f"python build/bench/drafts.py --count {count}"}
    record["hardware"] = f"{os.cpu_count()} CPU cores, one thread"
    record["families"] = list(FAMILIES)
    examples = [group[0] for family in FAMILIES for group in Cell(family=family, mode="off", count=count).groups()]
    with servers() as made:
        alone_s = [[alone(item.engine, examples) for item in made] for _ in range(ROUNDS)]
        record["batch_1"] = [_row(item, column) for item, column in zip(made, _columns(alone_s), strict=True)]
        for item in made:
            item.take_counts()
        together_s = [[together(item.engine, examples) for item in made] for _ in range(ROUNDS)]
        record[f"batch_{TOGETHER}"] = [
            _row(item, column) for item, column in zip(made, _columns(together_s), strict=True)
        ]
    return record


def _columns(rounds: list[list[float]]) -> list[tuple[float, float]]:
    """The median speed of each way, and the median of its ratios to the first one."""
    speeds = [median(values) for values in zip(*rounds, strict=True)]
    ratios = [
        median(value / row[0] for value, row in zip(values, rounds, strict=True))
        for values in zip(*rounds, strict=True)
    ]
    return list(zip(speeds, ratios, strict=True))


def _row(serving: Serving, column: tuple[float, float]) -> dict[str, Any]:
    drafted, accepted, rows = serving.take_counts()
    tokens = serving.metrics.counts.pop("dsv4_output_tokens_total", 0.0)
    row = {
        "way": serving.way.name,
        "tokens_per_s": round(column[0], 1),
        "ratio": round(column[1], 3),
        "accepted_of_drafted": round(accepted / drafted, 3) if drafted else None,
        "accepted_length": round(1 + accepted / rows, 3) if rows else None,
        "tokens_per_step": round(tokens / (tokens - accepted), 3) if tokens > accepted else None,
    }
    sys.stdout.write(f"{row}\n")
    return row


def main() -> int:
    """Print and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=8, help="prompts of each family")
    record = measure(parser.parse_args().count)
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
