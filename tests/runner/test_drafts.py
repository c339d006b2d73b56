"""Drafts change no answer: the same tokens and the same logprobs, whatever is asked for and whatever happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from library import Answer, Counts, answer, answer_together, open_engine, prompt

from dsv4_backend.config import CacheFormat, Drafter, Numerics
from dsv4_backend.records import Constraint, ConstraintKind, Prompt

DRAFTING = {"drafter": Drafter.NGRAM, "max_drafts": 4}


def repeating(length: int, salt: int, **changes: object) -> Prompt:
    """A prompt whose answer has three different tokens, so that its newest ones have often stood there before."""
    item = prompt(length, salt=salt, max_tokens=40)
    bias = tuple((token, 60.0) for token in item.token_ids[-3:])
    return replace(item, sampling=replace(item.sampling, logit_bias=bias), **changes)  # type: ignore[arg-type]


def bits(items: list[Answer]) -> list[object]:
    return [(item.token_ids, item.logprobs, item.final.finish_reason, item.final.usage) for item in items]


def both(checkpoint: Path, items: list[Prompt], **settings: object) -> tuple[list[Answer], list[Answer], Counts]:
    """Answers without and with drafts, and what the latter reported."""
    with open_engine(checkpoint, prefix_cache=False) as engine:
        plain = [answer(engine, item) for item in items]
    metrics = Counts()
    with open_engine(checkpoint, metrics, **DRAFTING, **settings) as engine:
        drafted = answer_together(engine, items)
    return plain, drafted, metrics


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_without_drafts(random_checkpoint: Path, temperature: float) -> None:
    items = [repeating(length, salt) for salt, length in enumerate((30, 125, 127, 128, 129, 250))]
    items = [replace(item, sampling=replace(item.sampling, temperature=temperature)) for item in items]
    plain, drafted, metrics = both(random_checkpoint, items, prefix_cache=False)
    assert bits(drafted) == bits(plain)
    drafted_tokens, accepted = (metrics.counts[f"dsv4_{what}_tokens_total"] for what in ("drafted", "accepted"))
    assert 20 < accepted < drafted_tokens


def test_penalties_stops_bias_and_a_grammar_apply_token_by_token(random_checkpoint: Path) -> None:
    base = repeating(100, 1)
    plain_text = both(random_checkpoint, [base])[0][0]
    items = [
        replace(base, sampling=replace(base.sampling, repetition_penalty=1.3, frequency_penalty=0.4)),
        replace(base, sampling=replace(base.sampling, logit_bias=((plain_text.token_ids[5], -60.0), (77, 60.0)))),
        replace(base, limits=replace(base.limits, max_tokens=3)),
        replace(base, limits=replace(base.limits, min_tokens=10, stop=(b"e",))),
        replace(base, constraint=Constraint(kind=ConstraintKind.REGEX, value="(ab|cd){3,30}")),
        replace(base, sampling=replace(base.sampling, temperature=0.8, top_p=0.9, top_k=20, min_p=0.01)),
    ]
    plain, drafted, _ = both(random_checkpoint, items, prefix_cache=False)
    assert bits(drafted) == bits(plain)


@pytest.mark.ci
def test_drafts_get_on_with_preemption_and_the_prefix_cache(random_checkpoint: Path) -> None:
    cache_format = CacheFormat.PACKED_FP4INDEX
    items = [repeating(length, salt) for salt, length in enumerate((120, 130, 200, 250, 260, 290))]
    with open_engine(random_checkpoint, prefix_cache=False, cache_format=cache_format) as engine:
        plain = [answer(engine, item).token_ids for item in items]
    metrics = Counts()
    squeezed = {"cache_tokens": 1024, "max_snapshots": 3, "host_cache_tokens": 1024, "cache_format": cache_format}
    with open_engine(random_checkpoint, metrics, **DRAFTING, **squeezed) as engine:
        found = [item.token_ids for _ in range(2) for item in answer_together(engine, items)]
    assert found == plain * 2
    assert metrics.counts["dsv4_preemptions_total"] > 0 and metrics.counts["dsv4_cached_tokens_total"] > 0
    assert metrics.counts["dsv4_accepted_tokens_total"] > 0


def test_nothing_is_drafted_while_many_run(random_checkpoint: Path) -> None:
    metrics = Counts()
    items = [repeating(60, salt) for salt in range(6)]
    with open_engine(random_checkpoint, metrics, **DRAFTING, max_draft_sequences=1, numerics=Numerics.PLAIN) as engine:
        answer_together(engine, items)
    assert metrics.counts["dsv4_drafted_tokens_total"] < 6 * 40
