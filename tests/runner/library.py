"""Run requests on an engine as a library, and collect what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dsv4_backend.engine import Engine
from dsv4_backend.engine.collect import iterate
from dsv4_backend.records import Chunk, Limits, Prompt, Request, SamplingParams, TokenLogprob


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
