"""How much of a conversation is found again: the figures that an agent feels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from library import answer, open_engine, prompt

from dsv4_backend.records import Limits, Prompt, SamplingParams

pytestmark = pytest.mark.slow

SYSTEM_TOKENS = 9_000  # a system prompt with tools of 36 kB
INTERVAL = 2048


def ask(tokens: tuple[int, ...], max_tokens: int) -> Prompt:
    return Prompt(
        token_ids=tokens,
        sampling=SamplingParams(temperature=0.0, seed=1),
        limits=Limits(max_tokens=max_tokens, ignore_eos=True),
    )


def test_an_agent_of_ten_turns_computes_at_most_five_percent_again(random_checkpoint: Path) -> None:
    tokens, shares = prompt(SYSTEM_TOKENS).token_ids, []
    with open_engine(random_checkpoint, num_threads=2) as engine:
        for turn in range(10):
            computed = len(tokens)
            tokens += prompt(60, salt=turn).token_ids
            found = answer(engine, ask(tokens, 40))
            shares.append(found.final.usage.num_cached_tokens / computed)
            tokens += found.token_ids
    assert min(shares[1:]) >= 0.95, shares


def test_an_edit_in_the_middle_computes_the_rest_and_an_interval_at_most(random_checkpoint: Path) -> None:
    tokens = prompt(16_384).token_ids
    edited = tokens[:8_192] + prompt(8_192, salt=3).token_ids
    with open_engine(random_checkpoint, num_threads=2, snapshot_interval_tokens=INTERVAL) as engine:
        answer(engine, ask(tokens, 4))
        found = answer(engine, ask(edited, 4))
        again = answer(engine, replace(ask(edited, 4), token_ids=edited[:-1] + (101,)))  # noqa: RUF005
    assert len(edited) - found.final.usage.num_cached_tokens <= 8_192 + INTERVAL
    assert len(edited) - again.final.usage.num_cached_tokens <= 128
