"""Speed features change nothing: batches, chunks, preemption and lost ranks give the same tokens and the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import Answer, Counts, answer, answer_together, open_engine, prompt

from dsv4_backend.config import Numerics

LENGTHS = (1, 3, 4, 5, 127, 128, 129, 131, 255, 260)


@pytest.fixture(scope="module", params=list(Numerics))
def numerics(request: pytest.FixtureRequest) -> Numerics:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def alone(random_checkpoint: Path, numerics: Numerics) -> list[Answer]:
    """Each prompt by itself, in one chunk."""
    with open_engine(random_checkpoint, numerics=numerics, max_step_tokens=512) as engine:
        return [answer(engine, prompt(length, salt=length)) for length in LENGTHS]


def test_a_batch_of_mixed_lengths_equals_each_alone(
    random_checkpoint: Path, numerics: Numerics, alone: list[Answer]
) -> None:
    with open_engine(random_checkpoint, numerics=numerics, max_step_tokens=512) as engine:
        together = answer_together(engine, [prompt(length, salt=length) for length in LENGTHS])
    assert [(item.token_ids, item.logprobs) for item in together] == [(item.token_ids, item.logprobs) for item in alone]


def test_small_chunks_equal_whole_prompts(random_checkpoint: Path, numerics: Numerics, alone: list[Answer]) -> None:
    with open_engine(random_checkpoint, numerics=numerics, max_step_tokens=128, max_sequences=3) as engine:
        chunked = answer_together(engine, [prompt(length, salt=length) for length in LENGTHS])
    assert [(item.token_ids, item.logprobs) for item in chunked] == [(item.token_ids, item.logprobs) for item in alone]


def test_preempted_requests_equal_undisturbed_ones(
    random_checkpoint: Path, numerics: Numerics, alone: list[Answer]
) -> None:
    metrics = Counts()
    with open_engine(random_checkpoint, metrics, numerics=numerics, max_step_tokens=256, cache_tokens=384) as engine:
        squeezed = answer_together(engine, [prompt(length, salt=length) for length in LENGTHS])
    assert [item.token_ids for item in squeezed] == [item.token_ids for item in alone]
    assert metrics.counts["dsv4_preemptions_total"] > 0, "nothing was preempted, so nothing was shown"


def test_sampled_tokens_depend_on_seed_and_position_only(random_checkpoint: Path) -> None:
    items = [prompt(40 + number, salt=number, temperature=1.0) for number in range(6)]
    with open_engine(random_checkpoint) as engine:
        alone = [answer(engine, item).token_ids for item in items]
        assert [item.token_ids for item in answer_together(engine, items)] == alone


def test_prompt_logprobs_do_not_depend_on_chunks(random_checkpoint: Path) -> None:
    ids = prompt(300).token_ids
    found = []
    for step_tokens in (512, 128):
        with open_engine(random_checkpoint, max_step_tokens=step_tokens, max_sequences=8) as engine:
            item = prompt(300, max_tokens=1)
            sampling = type(item.sampling)(temperature=0.0, seed=1, logprobs=1, prompt_logprobs=True)
            found.append(answer(engine, type(item)(token_ids=ids, sampling=sampling, limits=item.limits)))
    first, second = (item.chunks[0].prompt_logprobs for item in found)
    assert [entry.token_id for entry in first] == list(ids[1:])
    assert first == second


def test_steps_that_were_planned_ahead_change_no_bit(random_checkpoint: Path) -> None:
    items = [prompt(3 + 40 * salt, salt=salt, max_tokens=12 + 30 * salt, temperature=0.8) for salt in range(4)]
    answers = []
    for overlap in (False, True):
        with open_engine(random_checkpoint, overlap=overlap, cache_tokens=4096) as engine:
            answers.append(answer_together(engine, items))
    for plain, ahead in zip(*answers, strict=True):
        assert plain.token_ids == ahead.token_ids
        assert plain.logprobs == ahead.logprobs
