"""What n-gram drafts give on the bundled model: python build/bench/drafts.py [--count 8]

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

CHECKPOINT = HERE.parent / "nano" / "checkpoints" / "official"
RESULT = HERE / "results" / "drafts.json"
FAMILIES = ("tools", "json", "copy", "arithmetic", "recall")
TOGETHER = 32


@dataclass
class Counts(NullMetrics):
    """Keeps the counters of drafts."""

    counts: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, amount: float = 1.0, **_labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + amount


@contextmanager
def engine(drafter: Drafter, metrics: Counts) -> Iterator[Engine]:
    """Serve the bundled model."""
    config = ServingConfig(
        checkpoint=str(CHECKPOINT),
        drafter=drafter,
        max_drafts=4 if drafter is not Drafter.NONE else 0,
        max_sequences=TOGETHER,
        prefix_cache=False,
    )
    made = build_engine(config, metrics)
    made.start()
    try:
        yield made
    finally:
        made.close()


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
    """Measure every family, off and on in turn."""
    record: dict[str, Any] = {"command": f"python build/bench/drafts.py --count {count}", "rows": []}
    record["hardware"] = f"{os.cpu_count()} CPU cores"
    metrics = Counts()
    with engine(Drafter.NONE, Counts()) as plain, engine(Drafter.NGRAM, metrics) as drafting:
        for family in FAMILIES:
            examples = [group[0] for group in Cell(family=family, mode="off", count=count).groups()]
            metrics.counts.clear()
            rounds = [(alone(plain, examples), alone(drafting, examples)) for _ in range(3)]
            off, on = (sorted(values)[1] for values in zip(*rounds, strict=True))
            drafted = metrics.counts.get("dsv4_drafted_tokens_total", 0.0)
            accepted = metrics.counts.get("dsv4_accepted_tokens_total", 0.0)
            record["rows"].append(
                {
                    "family": family,
                    "off_tokens_per_s": round(off, 1),
                    "on_tokens_per_s": round(on, 1),
                    "ratio": round(on / off, 3),
                    "accepted_of_drafted": round(accepted / max(drafted, 1.0), 3),
                }
            )
            sys.stdout.write(f"{record['rows'][-1]}\n")
        examples = [group[0] for group in Cell(family="tools", mode="off", count=count).groups()]
        rounds = [(together(plain, examples), together(drafting, examples)) for _ in range(3)]
        off, on = (sorted(values)[1] for values in zip(*rounds, strict=True))
        record["together"] = {"requests": TOGETHER, "ratio": round(on / off, 3)}
    return record


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
