"""How much of a conversation is found again: the figures that an agent feels."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import answer, open_engine, prompt

from dsv4_backend.records import Limits, Prompt, SamplingParams

pytestmark = pytest.mark.slow

SYSTEM_TOKENS = 9_000  # a system prompt with tools of 36 kB


def ask(tokens: tuple[int, ...], max_tokens: int) -> Prompt:
    return Prompt(
        token_ids=tokens,
        sampling=SamplingParams(temperature=0.0, seed=1),
        limits=Limits(max_tokens=max_tokens, ignore_eos=True),
    )


EDITED_TOKENS = 16_384


def test_an_edit_in_the_middle_computes_what_follows_it_alone(random_checkpoint: Path) -> None:
    tokens = prompt(EDITED_TOKENS).token_ids
    middle = EDITED_TOKENS // 2
    edited = (*tokens[:middle], *prompt(5, salt=1).token_ids, *tokens[middle:])
    with open_engine(random_checkpoint, num_threads=2) as engine:
        answer(engine, ask(tokens, 1))
        found = answer(engine, ask(edited, 1)).final.usage
    computed = found.num_input_tokens - found.num_cached_tokens
    assert computed <= EDITED_TOKENS // 2 + 2048 + 128 + 5, computed


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
