"""Run requests on an engine as a library, and collect what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.assemble import build_engine
from dsv4_backend.config import ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.engine.collect import iterate
from dsv4_backend.metrics import MetricsSink, NullMetrics
from dsv4_backend.records import Chunk, Limits, Prompt, Request, SamplingParams, TokenLogprob
from dsv4_backend.runner.inline import InlineExecutor
from dsv4_backend.runner.rank import Rank


@dataclass(frozen=True)
class Answer:
    """All chunks of one request."""

    chunks: tuple[Chunk, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(item for chunk in self.chunks for item in chunk.logprobs)

    @property
    def final(self) -> Chunk:
        return self.chunks[-1]


def prompt(num_tokens: int, *, salt: int = 0, max_tokens: int = 24, temperature: float = 0.0) -> Prompt:
    """A prompt of pseudo-random ordinary tokens; logprobs are asked for, so that equality means equal bits."""
    ids = tuple(100 + (index * index * 7 + index * 31 + salt * 131) % 800 for index in range(num_tokens))
    return Prompt(
        token_ids=ids,
        sampling=SamplingParams(temperature=temperature, seed=5 + salt, logprobs=2),
        limits=Limits(max_tokens=max_tokens, ignore_eos=True),
    )


def answer(engine: Engine, item: Prompt, request_id: str = "r") -> Answer:
    """Run one request to its end."""
    return Answer(tuple(iterate(engine, Request(id=request_id, prompt=item))))


def answer_together(engine: Engine, items: Sequence[Prompt]) -> list[Answer]:
    """Run many requests at once."""
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(lambda pair: answer(engine, pair[1], f"r{pair[0]}"), enumerate(items)))


class Counts(NullMetrics):
    """Remembers counters."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.counts[name] += int(amount)


@contextmanager
def open_engine(checkpoint: Path, metrics: MetricsSink | None = None, **settings: object) -> Iterator[Engine]:
    """An engine with its model in this process."""
    config = ServingConfig(**({"checkpoint": str(checkpoint), "num_threads": 1} | settings))  # type: ignore[arg-type]
    engine = build_engine(config, metrics, executor=InlineExecutor(lambda: Rank.load(config)))
    engine.start()
    try:
        yield engine
    finally:
        engine.close()
