"""What the prefix cache gives is what computing gives: the same tokens and the same bits, at every offset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from library import Answer, Counts, answer, answer_together, open_engine, prompt

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.records import Prompt

pytestmark = pytest.mark.ci  # tests/model/test_prefix_offsets.py shows the model's part in a tenth of the time
OFFSETS = (1, 2, 3, 4, 5, 63, 126, 127, 128)
BASE = 256


STORED = (
    {"numerics": Numerics.TRAINED},
    {"numerics": Numerics.PLAIN},
    {"cache_format": CacheFormat.BF16},
    {"cache_format": CacheFormat.PACKED_FP4INDEX},
)


@pytest.fixture(scope="module", params=STORED, ids=lambda item: "-".join(str(value.value) for value in item.values()))
def stored(request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings that decide what stands in the cache."""
    return request.param  # type: ignore[no-any-return]


def cached(item: Answer) -> int:
    return item.final.usage.num_cached_tokens


def bits(items: list[Answer]) -> list[object]:
    return [(item.token_ids, item.logprobs) for item in items]


def extended(item: Prompt, tokens: tuple[int, ...], salt: int) -> Prompt:
    """A later turn: a text, its answer, and a few tokens more."""
    return replace(item, token_ids=item.token_ids + tokens + prompt(30, salt=salt).token_ids)


def branched(offset: int) -> Prompt:
    """A prompt whose first BASE tokens are always the same, with a rest of its own."""
    item = prompt(BASE, max_tokens=6)
    return replace(item, token_ids=item.token_ids + prompt(offset, salt=offset).token_ids)


def test_branches_of_a_kept_text_equal_fresh_ones_at_every_offset(
    random_checkpoint: Path, stored: dict[str, object]
) -> None:
    branches = [branched(offset) for offset in OFFSETS]
    with open_engine(random_checkpoint, **stored, prefix_cache=False) as engine:
        fresh = [answer(engine, item) for item in branches]
    with open_engine(random_checkpoint, **stored) as engine:
        found = [answer(engine, item) for item in branches]
    assert bits(found) == bits(fresh)
    assert [cached(item) for item in found] == [0] + [BASE] * (len(OFFSETS) - 1)


def test_prompts_that_arrive_together_are_computed_once(random_checkpoint: Path, stored: dict[str, object]) -> None:
    """As the choices of one request with n = 4, and as agents that share a system prompt."""
    items = [prompt(BASE + 30, salt=1, max_tokens=6, temperature=1.0)] * 3 + [branched(9)]
    items = [replace(item, sampling=replace(item.sampling, seed=seed)) for seed, item in enumerate(items)]
    with open_engine(random_checkpoint, **stored, prefix_cache=False) as engine:
        fresh = [answer(engine, item) for item in items]
    with open_engine(random_checkpoint, **stored, max_step_tokens=128) as engine:
        found = answer_together(engine, items)
    assert bits(found) == bits(fresh)
    assert sorted(cached(item) for item in found[:3]) == [0, BASE, BASE]


def test_a_conversation_goes_on_where_its_answer_ended(random_checkpoint: Path, stored: dict[str, object]) -> None:
    def talk(prefix_cache: bool) -> list[Answer]:
        with open_engine(random_checkpoint, **stored, prefix_cache=prefix_cache) as engine:
            item, answers = prompt(200, max_tokens=150), []
            for turn in range(3):
                answers.append(answer(engine, item))
                item = extended(item, answers[-1].token_ids, turn)
            return answers

    with_cache = talk(True)
    assert bits(with_cache) == bits(talk(False))
    assert [cached(item) for item in with_cache] == [0, 256, 512]


def test_answers_under_pressure_equal_fresh_ones(random_checkpoint: Path, stored: dict[str, object]) -> None:
    branches = [branched(offset) for offset in OFFSETS] + [prompt(300, salt=70 + number) for number in range(4)]
    with open_engine(random_checkpoint, **stored, prefix_cache=False) as engine:
        fresh = [answer(engine, item) for item in branches]
    metrics = Counts()
    with open_engine(random_checkpoint, metrics, **stored, cache_tokens=1024, max_snapshots=2) as engine:
        found = [item for _ in range(2) for item in answer_together(engine, branches)]
    assert bits(found) == bits(fresh * 2)
    assert metrics.counts["dsv4_preemptions_total"] > 0 and metrics.counts["dsv4_cached_tokens_total"] > 0


def test_texts_that_come_back_from_host_memory_equal_fresh_ones(random_checkpoint: Path) -> None:
    """More pages than the device has, so that nothing is found there the second time."""
    texts = [prompt(256 + offset, salt=offset, max_tokens=6) for offset in (1, 4, 127, 128)]
    settings = {"cache_format": CacheFormat.PACKED_FP4INDEX, "cache_tokens": 512}
    with open_engine(random_checkpoint, prefix_cache=False, **settings) as engine:
        fresh = [answer(engine, item) for item in texts]
    with open_engine(random_checkpoint, host_cache_tokens=2048, **settings) as engine:
        found = [answer(engine, item) for _ in range(2) for item in texts]
    assert bits(found) == bits(fresh * 2)
    assert [cached(item) for item in found] == [0] * 4 + [256] * 4


def test_another_tenant_computes_everything(random_checkpoint: Path) -> None:
    item = branched(9)
    with open_engine(random_checkpoint) as engine:
        answer(engine, item)
        assert cached(answer(engine, replace(item, cache_salt="other"))) == 0
        assert cached(answer(engine, item)) == BASE


def test_prompt_logprobs_are_whole_although_the_prompt_is_kept(random_checkpoint: Path) -> None:
    item = branched(9)
    asking = replace(item, sampling=replace(item.sampling, prompt_logprobs=True))
    with open_engine(random_checkpoint) as engine:
        first = answer(engine, asking)
        again = answer(engine, asking)
    assert first.chunks[0].prompt_logprobs == again.chunks[0].prompt_logprobs
    assert len(again.chunks[0].prompt_logprobs) == len(item.token_ids) - 1


def test_nothing_is_shared_after_the_ranks_were_lost(random_checkpoint: Path) -> None:
    item = branched(9)
    with open_engine(random_checkpoint, prefix_cache=True) as engine:
        first = answer(engine, item)
        engine._executor._rank = None  # type: ignore[attr-defined]
        second = answer(engine, replace(item, token_ids=(*item.token_ids, 101)))
        third = answer(engine, item)
    assert bits([first]) == bits([third]) and second.final.error == ""
