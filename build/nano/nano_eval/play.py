"""Greedy answers of a checkpoint, through the engine that serves it, many prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nano_data import Example

from dsv4_backend.assemble import build_engine
from dsv4_backend.config import Numerics, ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.engine.collect import iterate
from dsv4_backend.records import Limits, Prompt, Request, SamplingParams

MAX_TOGETHER = 48
SPARE_TOKENS = 48  # beyond the length of the given answer, after which an answer is cut off
Answered = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Player:
    """Asks one running engine."""

    engine: Engine

    def answers(self, groups: Sequence[Sequence[Example]], answered: Answered = lambda: None) -> list[list[list[int]]]:
        """Return the token ids of each greedy answer, its EOS included if the model wrote one.

        Rule: groups are asked together, the examples of a group one after the other.
        """

        def ask(item: tuple[int, Sequence[Example]]) -> list[list[int]]:
            found = []
            for number, example in enumerate(item[1]):
                found.append(self._answer(f"e{item[0]}.{number}", example))
                answered()
            return found

        with ThreadPoolExecutor(max_workers=MAX_TOGETHER) as pool:
            return list(pool.map(ask, enumerate(groups)))

    def _answer(self, request_id: str, example: Example) -> list[int]:
        prompt = example.token_ids[: example.num_prompt_tokens]
        most = len(example.token_ids) - len(prompt) + SPARE_TOKENS
        request = Request(
            id=request_id,
            prompt=Prompt(
                token_ids=prompt, sampling=SamplingParams(temperature=0.0), limits=Limits(max_tokens=most), stream=False
            ),
        )
        return [token for chunk in iterate(self.engine, request) for token in chunk.token_ids]


@contextmanager
def player(checkpoint: Path, numerics: Numerics = Numerics.TRAINED) -> Iterator[Player]:
    """Serve a checkpoint in child processes for the time of the block."""
    config = ServingConfig(
        checkpoint=str(checkpoint),
        numerics=numerics,
        max_sequences=MAX_TOGETHER,
        max_step_tokens=1024,
        cache_tokens=131_072,
    )
    engine = build_engine(config)
    engine.start()
    try:
        yield Player(engine)
    finally:
        engine.close()
